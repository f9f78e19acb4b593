"""The settings that a process shares, apart from its random state: kept aside, compared, put back."""

from __future__ import annotations

import builtins
import decimal
import gc
import locale
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules import module as hooked
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack, _pop_mode

from robbench.core.errors import Breach


@dataclass(frozen=True)
class Switch:
    """One setting of the process.

    Attributes:
        read: Gives its value. What a mapping holds beyond an earlier one is no change: libraries add to the environment
            and to torch when they are first imported.
        write: Sets a value that ``read`` gave.
    """

    read: Callable[[], Any]
    write: Callable[[Any], object]

    def change(self, before: object) -> str | None:
        """What differs from an earlier value, or None."""
        now = self.read()
        if now == before:
            return None
        if isinstance(before, Mapping):
            keys = [key for key, value in before.items() if key not in now or not _same(now[key], value)]
            return f"{', '.join(map(str, islice(keys, 5)))} changed" if keys else None
        return f"{before} became {now}"

    def put_back(self, before: object) -> None:
        """Set an earlier value where it is no longer the same."""
        if self.read() != before:
            self.write(before)


@dataclass(frozen=True)
class ProcessState:
    """The settings of the process at one moment, by name."""

    values: Mapping[str, Any] = field(repr=False)

    @classmethod
    def now(cls) -> ProcessState:
        """The settings as they are."""
        return cls({name: switch.read() for name, switch in SWITCHES.items()})

    def demand(self) -> None:
        """See that the settings are the same now.

        Raises:
            Breach: At the first that is not, with its name, what it was and what it has become.
        """
        for name, before in self.values.items():
            change = SWITCHES[name].change(before)
            if change:
                raise Breach(f"{name} stays", change)

    def restore(self) -> None:
        """Put the settings back, each of them even where another one cannot be."""
        with ExitStack() as stack:
            for name, before in reversed(list(self.values.items())):
                stack.callback(SWITCHES[name].put_back, before)


@contextmanager
def settings_kept() -> Iterator[None]:
    """Watch over the settings of the process, and put back what was changed.

    Raises:
        Breach: If one was not left as it was.
    """
    before = ProcessState.now()
    try:
        yield
        before.demand()
    finally:
        before.restore()


def _same(one: object, other: object) -> bool:
    return one is other or bool(one == other)


def _attribute(owner: Any, name: str) -> Switch:
    return Switch(lambda: getattr(owner, name), lambda value: setattr(owner, name, value))


# --- the process


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was deleted
        return None


def _file_mode_mask() -> int:
    mask = os.umask(0o077)  # which cannot be read otherwise
    os.umask(mask)
    return mask


def _set_environment(before: Mapping[str, str]) -> None:
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})


def _signals() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


def _set_signals(before: Mapping[int, Any]) -> None:
    # Only the main thread may, and what was not set from Python reads as None and cannot be set.
    if threading.current_thread() is threading.main_thread():
        for number, handler in before.items():
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)


def _decimal() -> dict[str, Any]:
    context = decimal.getcontext()
    names = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")
    return {**{name: getattr(context, name) for name in names}, "traps": dict(context.traps)}


def _set_decimal(before: Mapping[str, Any]) -> None:
    for name, value in before.items():
        setattr(decimal.getcontext(), name, value)


# --- torch


def _set_default_device(before: torch.device) -> None:
    torch.set_default_device(None)
    while torch.get_default_device() != before and torch._C._len_torch_function_stack():
        torch._C._pop_torch_function_stack()  # one that was entered and not left
    # A default that is set costs every call something, even where it is the one without.
    if torch.get_default_device() != before:
        torch.set_default_device(before)


_HELD: list[object] = []


def _set_inference_mode(before: bool) -> None:
    # The mode lasts as long as the object that set it.
    guard = torch.inference_mode(before)
    guard.__enter__()
    _HELD.append(guard)


def _denormals_flushed() -> bool:
    # Torch can set it and not tell; then half the smallest normal number is zero.
    return sys.float_info.min / 2 == 0


def _autocast() -> dict[str, Any]:
    kinds = {kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")}
    return {**kinds, "cache": torch.is_autocast_cache_enabled()}


def _set_autocast(before: Mapping[str, Any]) -> None:
    for kind in ("cpu", "cuda"):
        torch.set_autocast_enabled(kind, before[kind][0])
        torch.set_autocast_dtype(kind, before[kind][1])
    torch.set_autocast_cache_enabled(before["cache"])


def _precisions() -> dict[tuple[str, str], str]:
    # Not through ``allow_tf32`` and its like, which refuse to be read once these differ from one another.
    parts = [(kind, part) for kind in ("cuda", "mkldnn") for part in ("matmul", "conv", "rnn")]
    return {place: torch._C._get_fp32_precision_getter(*place) for place in (("generic", "all"), *parts)}


def _set_precisions(before: Mapping[tuple[str, str], str]) -> None:
    # Torch keeps an older switch beside these two, and refuses to go on where it does not fit them.
    if before["cuda", "conv"] == before["cuda", "rnn"]:
        torch.backends.cudnn.allow_tf32 = before["cuda", "conv"] == "tf32"
    for place, precision in before.items():
        torch._C._set_fp32_precision_setter(*place, precision)


def _attention() -> dict[str, bool]:
    cuda = torch.backends.cuda
    kinds = ("flash", "mem_efficient", "math", "cudnn")
    return {kind: getattr(cuda, f"{kind}_sdp_enabled")() for kind in kinds}


def _set_attention(before: Mapping[str, bool]) -> None:
    for kind, enabled in before.items():
        getattr(torch.backends.cuda, f"enable_{kind}_sdp")(enabled)


def _modes() -> tuple[list[Any], list[Any]]:
    # The default device is one of them, and a setting of its own.
    functions = [mode for mode in _get_current_function_mode_stack() if not isinstance(mode, DeviceContext)]
    return functions, _get_current_dispatch_mode_stack()


def _set_modes(before: tuple[list[Any], list[Any]]) -> None:
    while len(_modes()[0]) > len(before[0]):
        torch._C._pop_torch_function_stack()
    while len(_modes()[1]) > len(before[1]):
        _pop_mode()


def _hooks() -> tuple[Any, ...]:
    found = (value for name, value in vars(hooked).items() if name.startswith("_global_") and isinstance(value, dict))
    return tuple((registered, dict(registered)) for registered in found)


def _set_hooks(before: tuple[Any, ...]) -> None:
    for registered, hooks in before:
        registered.clear()
        registered.update(hooks)


def _code(owner: Any) -> Switch:
    """What a module or a class holds, with what the class inherits."""

    def read() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for part in owner.__mro__[-2::-1] if isinstance(owner, type) else (owner,):
            found.update(vars(part))
        found.pop("manual_seed", None)  # replaced when torch's compiler is first imported
        return found

    def write(before: Mapping[str, Any]) -> None:
        for name in [name for name, value in before.items() if read().get(name, owner) is not value]:
            if name in vars(owner):
                delattr(owner, name)
            if read().get(name, owner) is not before[name]:
                setattr(owner, name, before[name])

    return Switch(read, write)


# In the order in which they are compared and put back.
SWITCHES: Mapping[str, Switch] = {
    # Before everything that asks torch, whose answers the modes may change.
    "the stack of torch's modes": Switch(_modes, _set_modes),
    "the working directory": Switch(_working_directory, os.chdir),
    "the environment": Switch(lambda: dict(os.environ), _set_environment),
    "the mask of file modes": Switch(_file_mode_mask, os.umask),
    "the module path": Switch(lambda: list(sys.path), lambda before: sys.path.__setitem__(slice(None), before)),
    "the standard output": _attribute(sys, "stdout"),
    "the standard error": _attribute(sys, "stderr"),
    "the handling of signals": Switch(_signals, _set_signals),
    "the locale": Switch(
        lambda: locale.setlocale(locale.LC_ALL), lambda before: locale.setlocale(locale.LC_ALL, before)
    ),
    "the decimal context": Switch(_decimal, _set_decimal),
    "the recursion limit": Switch(sys.getrecursionlimit, sys.setrecursionlimit),
    "garbage collection": Switch(gc.isenabled, lambda before: gc.enable() if before else gc.disable()),
    "NumPy's handling of errors": Switch(np.geterr, lambda before: np.seterr(**before)),
    "the default type": Switch(torch.get_default_dtype, torch.set_default_dtype),
    "the default device": Switch(torch.get_default_device, _set_default_device),
    "the inference mode": Switch(torch.is_inference_mode_enabled, _set_inference_mode),
    "the gradient mode": Switch(torch.is_grad_enabled, torch.set_grad_enabled),
    "the forward gradient mode": Switch(torch._C._is_fwd_grad_enabled, torch._C._set_fwd_grad_enabled),
    "the number of threads": Switch(torch.get_num_threads, torch.set_num_threads),
    "the threads of gradients": Switch(torch._C._is_multithreading_enabled, torch._C._set_multithreading_enabled),
    "the choice of deterministic algorithms": Switch(
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda before: torch.use_deterministic_algorithms(before[0], warn_only=before[1]),
    ),
    "the filling of new memory": _attribute(torch.utils.deterministic, "fill_uninitialized_memory"),
    "the precision of float32": (
        Switch(_precisions, _set_precisions)
        if hasattr(torch._C, "_get_fp32_precision_getter")  # torch 2.9
        else Switch(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision)
    ),
    "autocast": Switch(_autocast, _set_autocast),
    "the flushing of denormals": Switch(_denormals_flushed, torch.set_flush_denormal),
    "the detection of anomalies": Switch(
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda before: torch.set_anomaly_enabled(*before),
    ),
    "torch's warnings": Switch(torch.is_warn_always_enabled, torch.set_warn_always),
    **{
        f"{kind}.{name}": _attribute(getattr(torch.backends, kind), name)
        for kind, names in {
            "cudnn": ("enabled", "deterministic", "benchmark", "benchmark_limit"),
            "mkldnn": ("enabled", "deterministic"),
            "opt_einsum": ("enabled", "strategy"),
        }.items()
        for name in names
        if hasattr(getattr(torch.backends, kind), name)
    },
    "the choice of attention kernels": Switch(_attention, _set_attention),
    "the stock of module hooks": Switch(_hooks, _set_hooks),
    **{
        f"the code of {name}": _code(owner)
        for name, owner in {
            "torch": torch,
            "torch.nn.functional": functional,
            "torch.Tensor": torch.Tensor,
            "torch.nn.Module": nn.Module,
            "NumPy": np,
            "Python": builtins,
        }.items()
    },
}
