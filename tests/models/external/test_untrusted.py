from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from external_networks import PROGRAMS, SHAPE, refused
from torch import nn

from robbench.models._external.archive import Archive
from robbench.models._external.exported_program import plain_parts
from robbench.models._external.loading import load_external
from robbench.models._external.request import ExternalRequest


class Touch:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


# --- pickles


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.pkl", "model.bin", "model.joblib", "model.ckpt"])
@pytest.mark.parametrize("plain", [False, True])
def test_no_pickle_is_loaded(network_files: Path, tmp_path: Path, name: str, plain: bool) -> None:
    bad, trap = tmp_path / name, tmp_path / "written"
    if plain:
        bad.write_bytes(pickle.dumps(Touch(trap)))
    else:
        torch.save({"model": Touch(trap)}, bad)
    for file in ("net.py", "layers.py"):
        (tmp_path / file).write_text((network_files / file).read_text())
    assert "safetensors" in refused(tmp_path, source=name)
    refused(tmp_path, source="net.py:make", weights=name)
    assert not trap.exists()


@pytest.mark.filterwarnings("ignore")
def test_a_whole_pickled_network_is_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(3, 2)), tmp_path / "net.pt")
    assert "torch.save(net.state_dict(), FILE)" in refused(tmp_path, source="net.pt")


@pytest.mark.parametrize(
    "name", ["net.h5", "net.keras", "net.pb", "net.npz", "net.ipynb", "net.py", "net", "net.safetensors"]
)
def test_what_holds_no_network_is_refused_with_the_remedy(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    text = refused(tmp_path, source=name)
    assert text.startswith(f"{name}: ")
    assert len(text) < 400


def test_a_bomb_is_refused_before_it_is_unpacked(network_files: Path, tmp_path: Path) -> None:
    for file in ("net.py", "layers.py"):
        (tmp_path / file).write_text((network_files / file).read_text())
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data/0", bytes(100 * 2**20))
        archive.writestr("w/data.pkl", b"")
        archive.writestr("w/version", b"3")
    assert "unpacks to" in refused(tmp_path, source="net.py:make", weights="w.pt")


# --- TorchScript


def script(network_files: Path, edit: Callable[[str, bytes], bytes]) -> Path:
    """A TorchScript archive, edited."""
    with torch.random.fork_rng():
        net = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(768, 5)))
    plain, path = network_files / "plain.pt", network_files / "edited.pt"
    net.save(str(plain))
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, edit(name.partition("/")[2], old.read(name)))
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('torch.save(input, "WRITTEN")', '"save"'),
        ('ops.aten.save(input, "WRITTEN")', '"save"'),
        ('t = torch\n    t.save(input, "WRITTEN")', '"save"'),
        ('torch . save(input, "WRITTEN")', '"save"'),
        ('getattr(torch, "sa" "ve")(input, "WRITTEN")', "getattr"),
        ('getattr(torch, "sa\\x76e")(input, "WRITTEN")', "getattr"),
        ('_7 = torch.from_file("WRITTEN", True, 4)', '"from_file"'),
        ('ops.image.write_file("WRITTEN", input)', '"ops.image"'),
        ("ops.mine.run(input)", '"ops.mine"'),
        ("o = ops\n    o.image.read_file(input)", '"ops"'),
        ("_7 = __torch__.torch.classes.mine.Thing()", '.classes.mine"'),
        ("b = __torch__.torch\n    _7 = b.classes.mine.Thing()", '".classes.mine"'),
        ("b = __torch__.torch. # said\n    classes.mine", "#"),
        ("^Python()(input)", '"^"'),
        ('ops.prim.rpc_sync("a", "b")', '"rpc_sync"'),
    ],
)
def test_torchscript_that_could_touch_more_than_tensors_is_refused(tmp_path: Path, line: str, said: str) -> None:
    trap = tmp_path / "written"

    def edit(name: str, content: bytes) -> bytes:
        if not (name.endswith(".py") and b"class Sequential" in content):
            return content
        text = content.decode().replace("Tensor:\n", f"Tensor:\n    {line.replace('WRITTEN', str(trap))}\n", 1)
        return text.encode()

    script(tmp_path, edit)
    text = refused(tmp_path, source="edited.pt")
    assert said in text
    assert not trap.exists()


class Setter(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :5]

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return (self.path, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        torch.ops.aten.save(torch.ones(1), state[0])
        self.path = state[0]
        self.training = state[1]


@pytest.mark.filterwarnings("ignore")
def test_torchscript_would_write_a_file_while_it_is_loaded_and_is_not_loaded(tmp_path: Path) -> None:
    trap = tmp_path / "written"
    torch.jit.script(Setter(str(trap))).save(str(tmp_path / "setter.pt"))
    assert '"save"' in refused(tmp_path, source="setter.pt")
    assert not trap.exists()
    torch.jit.load(str(tmp_path / "setter.pt"))
    assert trap.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not PROGRAMS, reason="needs torch 2.8, which writes programs in the format that is read")
def test_an_archive_with_a_constant_keeps_it(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :5] * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])

    x = torch.rand(3, *SHAPE)
    program = torch.export.export(Scaled(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "p.pt2")
    torch.jit.trace(Scaled(), (x,)).save(str(tmp_path / "p.pt"))
    for name in ("p.pt2", "p.pt"):
        found = load_external(ExternalRequest(source=name), SHAPE, 5, tmp_path)
        torch.testing.assert_close(found.model(x), Scaled()(x))


@pytest.mark.filterwarnings("ignore")
def test_objects_of_libraries_in_the_data_of_torchscript_are_refused(tmp_path: Path) -> None:
    def edit(name: str, content: bytes) -> bytes:
        return content.replace(b"Linear", b"classes.mine.Thing") if name == "data.pkl" else content

    path = script(tmp_path, edit)
    with zipfile.ZipFile(path) as archive:
        assert any(b"classes" in archive.read(name) for name in archive.namelist())
    assert "classes.mine" in refused(tmp_path, source="edited.pt")


@pytest.mark.filterwarnings("ignore")
def test_torchscript_of_common_layers_is_not_refused(tmp_path: Path) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)])
            self.out = nn.Linear(4, 5)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            classes = len(self.layers)
            assert classes == 2
            hidden = nn.functional.interpolate(images, scale_factor=2.0, mode="bilinear")
            for layer in self.layers:
                hidden = layer(hidden)
            if hidden.shape[0] > 100:
                print("many")
            found: torch.Tensor = self.out(nn.functional.adaptive_avg_pool2d(hidden, 1).flatten(1))
            return found

    torch.jit.script(Plain()).save(str(tmp_path / "plain.pt"))
    found = load_external(ExternalRequest(source="plain.pt"), SHAPE, 5, tmp_path)
    assert found.model.answers == "gradients"


# --- torch.export


def exported(network_files: Path, target: Path, edit: Callable[[str, bytes], bytes | None]) -> Path:
    """An edited copy of a program."""
    if not (network_files / "any.pt2").is_file():
        pytest.skip("needs torch 2.8, which writes programs in the format that is read")
    with zipfile.ZipFile(network_files / "any.pt2") as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = edit(name.partition("/")[2], old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target


def graph_edit(change: Callable[[dict[str, Any]], None]) -> Callable[[str, bytes], bytes]:
    def edit(name: str, content: bytes) -> bytes:
        if name != "models/model.json":
            return content
        graph = json.loads(content)
        change(graph)
        return json.dumps(graph).encode()

    return edit


def first_node(graph: dict[str, Any]) -> dict[str, Any]:
    node: dict[str, Any] = graph["graph_module"]["graph"]["nodes"][0]
    return node


def value_of(graph: dict[str, Any], name: str) -> dict[str, Any]:
    value: dict[str, Any] = graph["graph_module"]["graph"]["tensor_values"][name]
    return value


@pytest.mark.parametrize(
    "target",
    ["torch.os.system", "torch.ops.aten.save.default", "torch.ops.aten.from_file.default", "torch.load",
     "torch.hub.load", "_operator.methodcaller", "torch.ops.image.read_file.default", "#mine", "math.os",
     "torch.ops.higher_order.while_loop", "torch.ops.aten.add.Tensor\n", "torch._C._jit_script_compile"],
)  # fmt: skip
def test_operators_beyond_tensors_are_refused(network_files: Path, tmp_path: Path, target: str) -> None:
    argument = {"name": "other", "arg": {"as_operator": target}, "kind": 1}
    for change in (
        lambda graph: first_node(graph).update(target=target),
        lambda graph: first_node(graph)["inputs"].append(argument),
    ):
        exported(network_files, tmp_path / "p.pt2", graph_edit(change))
        assert "which is no operator of torch" in refused(tmp_path, source="p.pt2")


@pytest.mark.parametrize(
    "shape",
    ["__import__('os').mkdir('WRITTEN')", "Symbol('s0').__class__", "(lambda: 0)()", "Symbol('os.mkdir')", "exec('1')",
     "[1 for _ in 'a']", "9**9**9**9", "open('WRITTEN', 'w')", "Symbol", "S0 if 1 else 2", "'a'"],
)  # fmt: skip
def test_shapes_are_not_evaluated_unless_they_are_shapes(network_files: Path, tmp_path: Path, shape: str) -> None:
    text = shape.replace("WRITTEN", str(tmp_path / "written"))

    def change(graph: dict[str, Any]) -> None:
        value_of(graph, "conv2d")["sizes"][0] = {"as_expr": {"expr_str": text, "hint": {"as_int": 2}}}

    exported(network_files, tmp_path / "p.pt2", graph_edit(change))
    if shape != "Symbol":  # the name alone is nothing that can be called
        assert "a shape" in refused(tmp_path, source="p.pt2")
    assert not (tmp_path / "written").exists()


def test_names_that_would_be_compiled_are_refused(network_files: Path, tmp_path: Path) -> None:
    bad = 'x"), __import__("os").mkdir("written")#'
    changes: list[Callable[[dict[str, Any]], Any]] = [
        lambda graph: first_node(graph)["outputs"][0]["as_tensor"].update(name=bad),
        lambda graph: graph["graph_module"]["signature"]["input_specs"][0]["parameter"].update(parameter_name=bad),
        lambda graph: graph["graph_module"]["graph"]["tensor_values"].update({bad: value_of(graph, "conv2d")}),
        lambda graph: graph["graph_module"]["module_call_graph"][0]["signature"].update(forward_arg_names=[bad]),
    ]
    for change in changes:
        exported(network_files, tmp_path / "p.pt2", graph_edit(change))
        assert " for " in refused(tmp_path, source="p.pt2")


def test_what_torch_would_compile_or_unpickle_is_left_out(network_files: Path, tmp_path: Path) -> None:
    """Guards, comments, sample inputs and further files."""
    trap = tmp_path / "written"
    torch.save(Touch(trap), pickled := io.BytesIO())

    def edit(name: str, content: bytes) -> bytes:
        if name == "data/sample_inputs/model.pt":
            return pickled.getvalue()
        guards = [f"__import__('os').mkdir({str(trap)!r})"]
        return graph_edit(lambda graph: graph.update(guards_code=guards))(name, content)

    exported(network_files, tmp_path / "p.pt2", edit)
    found = load_external(ExternalRequest(source="p.pt2"), SHAPE, 5, tmp_path)
    found.model(torch.rand(3, *SHAPE))
    assert not trap.exists()
    parts, graph = plain_parts(Archive(tmp_path / "p.pt2"))
    assert graph["guards_code"] == []
    assert str(tmp_path.parent) not in parts["models/model.json"].decode()
    with pytest.raises((AssertionError, TypeError)):
        torch.export.load(tmp_path / "p.pt2")
    assert trap.exists()


@pytest.mark.parametrize("what", ["weights", "constants"])
def test_pickled_tensors_and_objects_are_refused(network_files: Path, tmp_path: Path, what: str) -> None:
    def edit(name: str, content: bytes) -> bytes:
        if name != f"data/{what}/model_{what}_config.json":
            return content
        config = json.loads(content)
        entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        config["config"]["thing"] = entry
        return json.dumps(config).encode()

    exported(network_files, tmp_path / "p.pt2", edit)
    assert '"thing" as a pickled object' in refused(tmp_path, source="p.pt2")


def test_programs_without_a_graph_and_compiled_ones_are_refused(network_files: Path, tmp_path: Path) -> None:
    exported(network_files, tmp_path / "p.pt2", lambda name, content: None if name.startswith("models/") else content)
    assert "no program" in refused(tmp_path, source="p.pt2")
    for edit in (
        graph_edit(lambda graph: graph.pop("graph_module")),
        graph_edit(lambda graph: graph["graph_module"].update(signature=[])),
        lambda name, content: b"[]" if name.endswith("config.json") else content,
        lambda name, content: b"{" if name == "models/model.json" else content,
        lambda name, content: b"[" * 100_000 if name == "models/model.json" else content,
    ):
        exported(network_files, tmp_path / "p.pt2", edit)
        assert "cannot be" in refused(tmp_path, source="p.pt2")
    (tmp_path / "q.pt2").write_bytes(b"no archive")
    assert "no archive" in refused(tmp_path, source="q.pt2")
