from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from external_networks import PROGRAMS, SHAPE, images, load, needs, network
from torch import Tensor, nn

from robbench.core.contracts import Classifier
from robbench.core.errors import RequestError
from robbench.models._external.loading import External, as_external, load_external
from robbench.models._external.request import ExternalRequest

ONNX = needs("onnx", "onnx2torch", "onnxruntime")
SAME = [
    {"source": "net.py:make", "weights": "net.safetensors"},
    {"source": "net.py:make", "weights": "net.pth"},
    {"source": "script.pt"},
    {"source": "trace.pt"},
    *([{"source": "two.pt2"}, {"source": "any.pt2"}] if PROGRAMS else []),
]
"""The network of ``external_networks`` in all formats that torch alone can read."""


def with_gradients(model: Classifier) -> tuple[Tensor, Tensor]:
    inputs = images().requires_grad_()
    scores = model(inputs)
    loss = torch.nn.functional.cross_entropy(scores, torch.tensor([0, 1, 2, 3, 4]))
    return scores.detach(), torch.autograd.grad(loss, inputs)[0]


def assert_same(found: External) -> None:
    scores, gradients = with_gradients(found.model)
    expected = with_gradients(as_external(network(), SHAPE, 5, normalization="cifar10").model)
    torch.testing.assert_close(scores, expected[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients, expected[1], rtol=1e-3, atol=1e-7)
    assert torch.equal(found.model.predict(images()), expected[0].argmax(1))
    for count in (1, 3, 7):
        with torch.no_grad():
            parts = torch.cat([found.model(part) for part in images(7).split(count)])
            torch.testing.assert_close(found.model(images(7)), parts, rtol=1e-4, atol=1e-6)
    assert found.model.answers == "gradients"
    assert not found.model.training
    assert not any(weights.requires_grad for weights in found.model.parameters())


@pytest.mark.parametrize("request_", SAME, ids=lambda request: "-".join(request.values()))
def test_one_network_is_the_same_in_every_format(network_files: Path, request_: dict[str, str]) -> None:
    found = load(network_files, normalization="cifar10", **request_)
    assert_same(found)
    assert found.label == request_["source"]
    assert str(network_files) not in json.dumps([found.identity, found.facts, found.notes])
    assert found.identity == load(network_files, normalization="cifar10", **request_).identity
    assert found.identity["weights_sha256"]


@pytest.mark.parametrize("request_", [*SAME, pytest.param({"source": "two.onnx"}, marks=ONNX)], ids=str)
def test_files_may_have_names_that_are_not_utf_8(onnx_files: Path, tmp_path: Path, request_: dict[str, str]) -> None:
    odd = {}
    for key, text in request_.items():
        name, colon, factory = text.partition(":")
        odd[key] = os.fsdecode(b"caf\xe9-" + os.fsencode(name)) + colon + factory
        shutil.copy(onnx_files / name, tmp_path / odd[key].partition(":")[0])
    shutil.copy(onnx_files / "layers.py", tmp_path)
    found, plain = load(tmp_path, **odd), load(onnx_files, **request_)
    assert found.label == f"caf?-{request_['source']}"
    assert found.identity == plain.identity


@ONNX
@pytest.mark.parametrize("name", ["two.onnx", "any.onnx"])
def test_onnx_has_the_gradients_of_the_network_that_it_was_exported_from(onnx_files: Path, name: str) -> None:
    found = load(onnx_files, source=name, normalization="cifar10")
    assert_same(found)
    assert found.facts["parameters"] > 100
    assert ("takes 2 images a call" in found.notes) == (name == "two.onnx")


@ONNX
@needs("onnxscript")
@pytest.mark.filterwarnings("ignore")
def test_onnx_of_the_newer_exporter_keeps_its_gradients(tmp_path: Path) -> None:
    """It writes operators that onnx2torch does not know in that version."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()
    torch.onnx.export(net, (images(2),), str(tmp_path / "net.onnx"), dynamo=True, verbose=False)
    found = load(tmp_path, source="net.onnx")
    assert found.model.answers == "gradients"
    torch.testing.assert_close(found.model(images()), net(images()), rtol=1e-4, atol=1e-6)


@ONNX
def test_onnx_that_cannot_be_converted_answers_scores(tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("Hardmax", ["flat"], ["y"])],
        "g",
        [info("x", onnx.TensorProto.FLOAT, ["N", 5, 1, 1])],
        [info("y", onnx.TensorProto.FLOAT, ["N", 5])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "hard.onnx")
    found = load_external(ExternalRequest(source="hard.onnx"), (5, 1, 1), 5, tmp_path)
    assert found.model.answers == "scores"
    assert any("onnxruntime" in note for note in found.notes)
    assert "scores only: attacks without gradients" in found.notes
    one = torch.rand(3, 5, 1, 1, requires_grad=True)
    assert not found.model(one).requires_grad
    assert torch.equal(found.model.predict(one), one.flatten(1).argmax(1))


@ONNX
@pytest.mark.parametrize(
    ("dims", "order"),
    [
        (["N", 8, 8, 3], "NHWC"),
        (["N", None, None, 3], "NHWC"),
        (["N", 3, None, None], "NCHW"),
        (["N", 192], "flat"),
        ([2, 192], "flat"),
    ],
)
def test_onnx_takes_images_in_its_own_order(tmp_path: Path, dims: list[str | int | None], order: str) -> None:
    import onnx
    from onnx import helper, numpy_helper

    weights = torch.randn(192, 4, generator=torch.Generator().manual_seed(0))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])],
        "g",
        [info("x", onnx.TensorProto.FLOAT, dims)],
        [info("y", onnx.TensorProto.FLOAT, [dims[0], 4])],
        [numpy_helper.from_array(weights.numpy(), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "n.onnx")
    found = load_external(ExternalRequest(source="n.onnx"), (3, 8, 8), 4, tmp_path)
    x = torch.rand(3, 3, 8, 8)
    flat = x.permute(0, 2, 3, 1).flatten(1) if order == "NHWC" else x.flatten(1)
    torch.testing.assert_close(found.model(x), flat @ weights, rtol=1e-4, atol=1e-5)
    assert found.model.answers == "gradients"


def test_identity_is_that_of_another_process_and_of_another_folder(network_files: Path, tmp_path: Path) -> None:
    code = """
import json, sys
from pathlib import Path
from robbench.models._external.loading import load_external
from robbench.models._external.request import ExternalRequest
for text in json.loads(sys.argv[2]):
    request = ExternalRequest.model_validate(text)
    print(json.dumps(load_external(request, (3, 16, 16), 5, Path(sys.argv[1])).identity))
"""
    for file in network_files.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    narrow = {"source": "net.py:make", "arguments": {"width": 3}}
    requests: list[dict[str, Any]] = [*SAME, {"source": "net.py:make"}, {"source": "net.py:net"}, narrow]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path), json.dumps(requests)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    elsewhere = [json.loads(line) for line in done.stdout.splitlines()]
    assert elsewhere == [load(network_files, **request).identity for request in requests]
    texts = {json.dumps(one, sort_keys=True) for one in elsewhere}
    assert len(texts) == len(requests) - 1  # weights are the same in both files


def test_other_weights_code_normalization_or_answers_are_another_model(network_files: Path, tmp_path: Path) -> None:
    first = load(network_files, source="net.py:make").identity
    for name in ("net.py", "layers.py"):
        (tmp_path / name).write_text((network_files / name).read_text())
    assert load(tmp_path, source="net.py:make").identity == first
    others = [
        load(network_files, source="net.py:make", weights="net.safetensors").identity,
        load(network_files, source="net.py:make", normalization="half").identity,
        load(network_files, source="net.py:make", answers="scores").identity,
        load(network_files, source="net.py:make", input_size=(16, 16)).identity,
    ]
    (tmp_path / "layers.py").write_text((network_files / "layers.py").read_text() + "\n# edited\n")
    others.append(load(tmp_path, source="net.py:make").identity)
    assert len({json.dumps(one, sort_keys=True) for one in [first, *others]}) == 6
    assert load(network_files, source="net.py:make", mean=(0.5,), std=(0.5,)).identity == others[1]


# --- torchvision and timm


def test_torchvision_with_random_weights_and_with_a_file(tmp_path: Path) -> None:
    from torchvision.models import squeezenet1_1

    found = load_external(ExternalRequest(source="torchvision:squeezenet1_1"), (3, 32, 32), 7, tmp_path)
    assert found.label == "squeezenet1_1 (torchvision)"
    assert found.model(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    assert "random weights, drawn under a fixed seed" in found.notes
    assert found.facts["input_size"] == []
    network = squeezenet1_1(num_classes=7).eval()
    torch.save(network.state_dict(), tmp_path / "w.pt")
    given = load_external(
        ExternalRequest(source="torchvision:squeezenet1_1", weights="w.pt", normalization="model"),
        (3, 32, 32),
        7,
        tmp_path,
    )
    assert given.facts["input_size"] == [224, 224]
    assert given.facts["mean"] == [0.485, 0.456, 0.406]
    assert given.facts["source"].startswith("https://download.pytorch.org/")
    x = torch.rand(2, 3, 32, 32)
    large = torch.nn.functional.interpolate(x, (224, 224), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(given.facts[name]).reshape(1, 3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(given.model(x), network((large - mean) / std), rtol=1e-4, atol=1e-5)


def test_what_torchvision_does_not_have_is_named() -> None:
    for request, said in (
        ({"source": "torchvision:resnet19"}, 'did you mean "resnet'),
        ({"source": "torchvision:resnet18", "weights": "IMAGENET1K_V9"}, "known: IMAGENET1K_V1, DEFAULT"),
        ({"source": "torchvision:resnet18", "arguments": {"depth": 3}}, "unexpected keyword argument 'depth'"),
        ({"source": "torchvision:fcn_resnet50"}, "torchvision has no classifier"),
    ):
        with pytest.raises(RequestError, match=r"^torchvision:") as caught:
            load_external(ExternalRequest.model_validate(request), (3, 32, 32), 10)
        assert said in str(caught.value)


@needs("timm")
@pytest.mark.filterwarnings("ignore")
def test_timm_has_metadata(tmp_path: Path) -> None:
    request = {"source": "timm:test_resnet"}
    found = load_external(ExternalRequest.model_validate(request), (3, 32, 32), 7, tmp_path)
    assert found.facts["input_size"] == []
    assert found.model(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    whole = load_external(ExternalRequest.model_validate(request), (3, 32, 32), 1000, tmp_path)
    assert len(whole.facts["input_size"]) == 2
    assert whole.facts["license"]
    assert whole.facts["mean"] != [0.0, 0.0, 0.0]
    gray = load_external(ExternalRequest.model_validate(request), (1, 28, 28), 10, tmp_path)
    assert gray.model(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(RequestError, match='did you mean "test_resnet"'):
        load_external(ExternalRequest(source="timm:tset_resnet"), (3, 32, 32), 7)


@needs("timm")
@pytest.mark.filterwarnings("ignore")
def test_timm_vision_transformers_have_the_size_that_they_were_made_for(tmp_path: Path) -> None:
    found = load_external(ExternalRequest(source="timm:test_vit"), (3, 32, 32), 7, tmp_path)
    assert found.facts["input_size"] == [160, 160]
    assert found.facts["mean"] == [0.0, 0.0, 0.0]
    own = ExternalRequest(source="timm:test_vit", arguments={"img_size": 32})
    assert load_external(own, (3, 32, 32), 7, tmp_path).facts["input_size"] == []


def test_packages_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch, network_files: Path) -> None:
    for name in ("timm", "onnx", "robustbench"):
        monkeypatch.setitem(sys.modules, name, None)
    (network_files / "empty.onnx").write_bytes(b"")
    for source, said in (
        ("timm:resnet18", "pip install 'robbench[timm]'"),
        ("empty.onnx", "pip install 'robbench[onnx]'"),
        ("robustbench:Standard", "pip install git"),
    ):
        with pytest.raises(RequestError) as caught:
            load(network_files, source=source)
        assert said in str(caught.value)


def test_half_precision_is_converted(tmp_path: Path) -> None:
    net = network().to(torch.bfloat16)
    found = as_external(net, SHAPE, 5)
    assert found.notes == ("weights converted to float32 from bfloat16",)
    assert found.model(images()).dtype == torch.float32
    assert next(net.parameters()).dtype == torch.bfloat16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network().half()).save(str(tmp_path / "half.pt"))
    assert load(tmp_path, source="half.pt").model(images()).dtype == torch.float32
