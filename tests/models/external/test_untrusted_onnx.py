from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from external_networks import SHAPE, needs, refused

from robbench.models._external.loading import load_external
from robbench.models._external.request import ExternalRequest


@needs("onnx", "onnx2torch", "onnxruntime")
@pytest.mark.parametrize("place", ["../secret", "/etc/hostname", "link", "missing", ""])
def test_onnx_reads_no_file_beyond_its_folder(tmp_path: Path, place: str) -> None:
    import onnx
    from onnx import helper

    network_files = tmp_path / "model"
    network_files.mkdir()
    (tmp_path / "secret").write_bytes(bytes(4 * 768 * 5))
    (network_files / "link").symlink_to(tmp_path / "secret")
    weights = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[768, 5])
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=place)
    linear = [("Flatten", ["x"], ["f"], ""), ("MatMul", ["f", "w"], ["y"], "")]
    onnx.save(onnx_model(linear, [weights]), network_files / "n.onnx")
    assert "no file in its folder" in refused(network_files, source="n.onnx")
    constant = helper.make_node("Constant", [], ["w"], value=weights)
    model = onnx_model(linear, [])
    model.graph.node.insert(0, constant)
    onnx.save(model, network_files / "n.onnx")
    assert "no file in its folder" in refused(network_files, source="n.onnx")


@needs("onnx", "onnx2torch", "onnxruntime")
@pytest.mark.parametrize(
    ("name", "domain"), [("Run", "mine"), ("EPContext", "com.microsoft"), ("PyOp", "ai.onnx.contrib")]
)
def test_onnx_operators_of_others_are_refused(tmp_path: Path, name: str, domain: str) -> None:
    import onnx

    onnx.save(onnx_model([("Flatten", ["x"], ["f"], ""), (name, ["f"], ["y"], domain)], []), tmp_path / "n.onnx")
    assert f'"{domain}.{name}"' in refused(tmp_path, source="n.onnx")


@needs("onnx", "onnx2torch", "onnxruntime")
def test_external_tensors_beside_the_model_are_read(tmp_path: Path) -> None:
    import onnx

    weights = torch.randn(768, 5, generator=torch.Generator().manual_seed(0))
    tensor = onnx.numpy_helper.from_array(weights.numpy(), "w")
    model = onnx_model([("Flatten", ["x"], ["f"], ""), ("MatMul", ["f", "w"], ["y"], "")], [tensor])
    onnx.save(model, tmp_path / "n.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    found = load_external(ExternalRequest(source="n.onnx"), SHAPE, 5, tmp_path)
    x = torch.rand(3, *SHAPE)
    torch.testing.assert_close(found.model(x), x.flatten(1) @ weights, rtol=1e-4, atol=1e-4)
    whole = load_external(ExternalRequest(source="n.onnx"), SHAPE, 5, tmp_path)
    assert found.identity == whole.identity
    (tmp_path / "broken.onnx").write_bytes(b"\x08\xff")
    assert "cannot be read as ONNX" in refused(tmp_path, source="broken.onnx")


def onnx_model(nodes: list[tuple[str, list[str], list[str], str]], tensors: list[Any]) -> Any:
    import onnx
    from onnx import helper

    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(name, given, made, domain=domain) for name, given, made, domain in nodes],
        "g",
        [info("x", onnx.TensorProto.FLOAT, ["N", *SHAPE])],
        [info("y", onnx.TensorProto.FLOAT, ["N", 5])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
