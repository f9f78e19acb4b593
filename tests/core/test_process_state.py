from __future__ import annotations

import builtins
import decimal
import gc
import io
import locale
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from robbench.core.errors import Breach
from robbench.core.process_state import SWITCHES, ProcessState, settings_kept


def setting(owner: Any, name: str, value: object) -> Callable[[], object]:
    return lambda: setattr(owner, name, value)


def entering(make: Callable[[], Any], held: list[object]) -> Callable[[], object]:
    def enter() -> None:
        held.append(make())
        held[-1].__enter__()  # type: ignore[attr-defined]

    return enter


HELD: list[object] = []
FLIPS: dict[str, list[Callable[[], object]]] = {
    "the stack of torch's modes": [entering(TorchFunctionMode, HELD), entering(TorchDispatchMode, HELD)],
    "the working directory": [lambda: os.chdir("/")],
    "the environment": [lambda: os.environ.pop("PATH"), lambda: os.environ.update(PATH="/nowhere")],
    "the mask of file modes": [lambda: os.umask(0o777)],
    "the module path": [lambda: sys.path.insert(0, "/nowhere"), sys.path.clear],
    "the standard output": [setting(sys, "stdout", io.StringIO())],
    "the standard error": [setting(sys, "stderr", None)],
    "the handling of signals": [lambda: signal.signal(signal.SIGINT, lambda *_: None)],
    "the locale": [lambda: locale.setlocale(locale.LC_ALL, "C.UTF-8")],
    "the decimal context": [setting(decimal.getcontext(), "prec", 3)],
    "the recursion limit": [lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 1)],
    "garbage collection": [gc.disable],
    "NumPy's handling of errors": [lambda: np.seterr(all="ignore")],
    "the default type": [lambda: torch.set_default_dtype(torch.float64)],
    "the default device": [
        lambda: torch.set_default_device("meta"),
        entering(lambda: torch.device("meta"), HELD),
    ],
    "the inference mode": [entering(torch.inference_mode, HELD)],
    "the gradient mode": [lambda: torch.set_grad_enabled(False), entering(torch.no_grad, HELD)],
    "the forward gradient mode": [lambda: torch._C._set_fwd_grad_enabled(False)],
    "the number of threads": [lambda: torch.set_num_threads(torch.get_num_threads() + 1)],
    "the threads of gradients": [lambda: torch.autograd.set_multithreading_enabled(False)],
    "the choice of deterministic algorithms": [
        lambda: torch.use_deterministic_algorithms(True),
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    ],
    "the filling of new memory": [setting(torch.utils.deterministic, "fill_uninitialized_memory", False)],
    "the precision of float32": [
        lambda: torch.set_float32_matmul_precision("medium"),
        setting(torch.backends, "fp32_precision", "tf32"),
        setting(torch.backends.cuda.matmul, "allow_tf32", True),
        setting(torch.backends.cudnn, "allow_tf32", False),
    ],
    "autocast": [
        entering(lambda: torch.autocast("cpu"), HELD),
        lambda: torch.set_autocast_cache_enabled(False),
        lambda: torch.set_autocast_dtype("cpu", torch.float16),
    ],
    "the flushing of denormals": [lambda: torch.set_flush_denormal(True)],
    "the detection of anomalies": [lambda: torch.set_anomaly_enabled(True)],
    "torch's warnings": [lambda: torch.set_warn_always(True)],
    "cudnn.enabled": [setting(torch.backends.cudnn, "enabled", False)],
    "cudnn.deterministic": [setting(torch.backends.cudnn, "deterministic", True)],
    "cudnn.benchmark": [setting(torch.backends.cudnn, "benchmark", True)],
    "cudnn.benchmark_limit": [setting(torch.backends.cudnn, "benchmark_limit", 3)],
    "mkldnn.enabled": [setting(torch.backends.mkldnn, "enabled", False)],
    "mkldnn.deterministic": [setting(torch.backends.mkldnn, "deterministic", True)],
    "opt_einsum.enabled": [setting(torch.backends.opt_einsum, "enabled", not torch.backends.opt_einsum.enabled)],
    "opt_einsum.strategy": [setting(torch.backends.opt_einsum, "strategy", "greedy")],
    "the choice of attention kernels": [lambda: torch.backends.cuda.enable_math_sdp(False)],
    "the stock of module hooks": [lambda: register_module_forward_hook(lambda module, given, found: None)],
    "the code of torch": [setting(torch, "argmax", torch.argmin)],
    "the code of torch.nn.functional": [setting(torch.nn.functional, "relu", torch.sigmoid)],
    "the code of torch.Tensor": [
        setting(torch.Tensor, "argmax", torch.Tensor.argmin),  # which is inherited
        setting(torch.Tensor, "__repr__", object.__repr__),
        lambda: delattr(torch.Tensor, "backward"),
    ],
    "the code of torch.nn.Module": [setting(torch.nn.Module, "eval", torch.nn.Module.train)],
    "the code of NumPy": [setting(np, "equal", np.not_equal)],
    "the code of Python": [setting(builtins, "max", min)],
}


def test_every_setting_is_tried() -> None:
    assert list(FLIPS) == list(SWITCHES)


@pytest.mark.parametrize(("name", "flip"), [(name, flip) for name, flips in FLIPS.items() for flip in flips])
def test_a_setting_that_was_changed_is_named_and_put_back(name: str, flip: Callable[[], object]) -> None:
    before = ProcessState.now()
    with pytest.raises(Breach) as caught, settings_kept():
        flip()
    assert caught.value.rule == f"{name} stays"
    before.demand()
    HELD.clear()  # what was left behind is gone, and may put back what it found
    before.demand()


@pytest.mark.parametrize("flip", [flip for flips in FLIPS.values() for flip in flips])
def test_settings_are_put_back_after_an_error_which_stays_the_error(flip: Callable[[], object]) -> None:
    before = ProcessState.now()

    def fail() -> None:
        flip()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), settings_kept():
        fail()
    HELD.clear()
    before.demand()


def test_values_of_the_environment_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    with pytest.raises(Breach, match=r"the environment stays: TOKEN changed$"), settings_kept():
        os.environ["TOKEN"] = "other secret"
    assert os.environ["TOKEN"] == "secret"


def test_what_a_library_adds_when_it_is_imported_is_no_breach() -> None:
    with settings_kept():
        os.environ["KMP_OF_A_LIBRARY"] = "1"
        torch.part_of_a_library = None  # type: ignore[attr-defined]
        np.part_of_a_library = None  # type: ignore[attr-defined]
    assert "KMP_OF_A_LIBRARY" not in os.environ
    del torch.part_of_a_library, np.part_of_a_library  # type: ignore[attr-defined]


def test_a_directory_that_is_gone_keeps_nothing_else_from_being_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def away() -> None:
        os.chdir("/")
        here.rmdir()
        torch.set_default_dtype(torch.float64)

    with pytest.raises(FileNotFoundError), settings_kept():
        away()
    assert torch.get_default_dtype() == torch.float32


def test_filters_of_warnings_may_change() -> None:
    with warnings.catch_warnings(), settings_kept():
        warnings.simplefilter("ignore")
