from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from external_networks import LAYERS, PROGRAMS, SOURCE, images, network
from hypothesis import settings
from maps import map_by_axes
from safetensors.torch import save_file

pytest.register_assert_rewrite("addresses", "browsing")

# How long an example takes says more of how busy the machine is than of what is tested.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """One thread, whatever a test before left: small tensors lose more to the hand-over than they gain."""
    torch.set_num_threads(1)


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs on as many workers as a machine with one core has."""
    monkeypatch.setattr("robbench.execution.local.cores", lambda: 1)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boards without figures, where a test looks at none: drawing them takes most of a small run."""
    monkeypatch.setattr("robbench.leaderboards.plots.draw", lambda *_: ())


@pytest.fixture
def no_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps of embeddings by their first two coordinates."""
    map_by_axes(monkeypatch)


@pytest.fixture(scope="session")
def network_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One network as source, as weights, as TorchScript and as two programs of torch.export."""
    folder = tmp_path_factory.mktemp("networks")
    (folder / "net.py").write_text(SOURCE)
    (folder / "layers.py").write_text(LAYERS)
    net, two = network(), images(2)
    save_file(net.state_dict(), folder / "net.safetensors")
    torch.save({"state_dict": {f"module.{key}": value for key, value in net.state_dict().items()}}, folder / "net.pth")
    open_batch = ({0: torch.export.Dim("batch")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(net).save(str(folder / "script.pt"))
        torch.jit.trace(net, two).save(str(folder / "trace.pt"))
        if PROGRAMS:
            torch.export.save(torch.export.export(net, (two,)), folder / "two.pt2")
            torch.export.save(torch.export.export(net, (two,), dynamic_shapes=open_batch), folder / "any.pt2")
    return folder


@pytest.fixture(scope="session")
def onnx_files(network_files: Path) -> Path:
    """The same network as ONNX, of a fixed and of an open number of images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network(), (images(2),), str(network_files / "two.onnx"), dynamo=False, verbose=False)
        torch.onnx.export(
            network(),
            (images(2),),
            str(network_files / "any.onnx"),
            dynamo=False,
            verbose=False,
            input_names=["input"],
            dynamic_axes={"input": {0: "N"}},
        )
    return network_files
