from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from external_networks import images, load, network, refused
from safetensors.torch import save_file

from robbench.core.global_rng import GlobalState
from robbench.core.process_state import ProcessState

HEAD = "import torch\nfrom torch import nn\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(768, 5))\n"


def written(network_files: Path, **files: str) -> Path:
    """Python files in a network_files; two underscores in a name lead into a network_files inside it."""
    for name, text in files.items():
        path = network_files / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return network_files


def package(*folders: Path) -> None:
    for network_files in folders:
        network_files.mkdir(parents=True, exist_ok=True)
        (network_files / "__init__.py").write_text("WIDTH = 768\n")


# --- factories


def test_a_factory_is_run_under_a_fixed_seed_and_leaves_no_traces(network_files: Path) -> None:
    before, listed, state = set(sys.modules), sorted(os.listdir(network_files)), torch.get_rng_state()
    found = load(network_files, source="net.py:make")
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng():
        torch.rand(1)
        again = load(network_files, source="net.py:make")
    assert found.identity == again.identity
    assert found.label == "net.py:make"
    assert torch.equal(found.model(images()), again.model(images()))
    assert not [name for name in set(sys.modules) - before if name.startswith(("robbench_external", "layers", "net"))]
    assert sorted(os.listdir(network_files)) == listed
    assert str(network_files) not in sys.path


def test_settings_that_a_file_changes_are_put_back(tmp_path: Path) -> None:
    text = HEAD + (
        "import os, random, numpy\nos.environ['OF_A_FACTORY'] = '1'\nos.chdir('/')\ntorch.set_grad_enabled(False)\n"
        "torch.manual_seed(0); random.seed(0); numpy.random.seed(0)\ntorch.backends.cudnn.benchmark = True\n"
        "torch.relu = None\n"
    )
    before, state = ProcessState.now(), GlobalState.now()
    load(written(tmp_path, net=text), source="net.py:make")
    before.demand()
    assert "OF_A_FACTORY" not in os.environ
    assert GlobalState.now() == state


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("make", ""),
        ("net", "net = make()"),
        ("Net", "class Net(nn.Module):\n    def __init__(self, k=5):\n        super().__init__()\n        self.k = k\n"
         "    def forward(self, x):\n        return x.flatten(1)[:, :self.k]"),
        ("part", "import functools\npart = functools.partial(make)"),
        ("Zoo.small", "class Zoo:\n    small = staticmethod(make)"),
        ("black_box", "def black_box():\n    net = make()\n    return lambda x: net(x).argmax(1)"),
        ("arrays", "def arrays():\n    return lambda x: x.reshape(len(x), -1)[:, :5].astype(float)"),
        ("data", "from dataclasses import dataclass\n@dataclass\nclass Size:\n    k: int = 5\n"
         "def data():\n    Size()\n    return make()"),
    ],
)  # fmt: skip
def test_what_a_factory_can_be(tmp_path: Path, name: str, code: str) -> None:
    found = load(written(tmp_path, net=f"from __future__ import annotations\n{HEAD}{code}\n"), source=f"net.py:{name}")
    assert found.model.predict(images()).shape == (5,)
    assert found.identity["code_sha256"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("1 / 0", r"net.py cannot be loaded: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "net.py cannot be loaded: SystemExit: 3"),
        ("def make(:", "net.py cannot be loaded: SyntaxError"),
        ("import nothing_of_that_name", "No module named 'nothing_of_that_name'"),
        ("def make():\n    raise KeyError('k')", '"make" in net.py fails: KeyError'),
        ("def make():\n    exit()", '"make" in net.py fails: SystemExit'),
        ("def make(classes):\n    pass", "'classes'; what a factory takes is given as --argument NAME=VALUE"),
        ("def make():\n    return None", '"make" in net.py returns NoneType, not a network'),
        ("make = 3", '"make" in net.py is no factory: it is int'),
        ("def mak():\n    pass", 'did you mean "mak"?'),
        ("def make():\n    import lazily_missing", "No module named 'lazily_missing'"),
    ],
)
def test_what_is_wrong_with_a_factory_is_said_in_one_line(tmp_path: Path, code: str, said: str) -> None:
    text = refused(written(tmp_path, net=code), source="net.py:make")
    assert text.startswith("net.py:make: ")
    assert said in text


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_layers_need_their_weights_before(tmp_path: Path) -> None:
    code = HEAD.replace("nn.Linear(768, 5)", "nn.LazyLinear(5)")
    assert "call it once" in refused(written(tmp_path, net=code), source="net.py:make")
    code += "\ndef called():\n    net = make()\n    net(torch.zeros(1, 3, 16, 16))\n    return net\n"
    assert load(written(tmp_path, net=code), source="net.py:called").facts["parameters"] == 769 * 5


def test_an_import_at_call_time_is_explained(tmp_path: Path) -> None:
    code = "def make():\n    def net(x):\n        import late\n        return x\n    return net\n"
    assert "import it where the file begins" in refused(written(tmp_path, net=code, late=""), source="net.py:make")


def test_text_that_may_be_a_path_tells_no_models_apart(tmp_path: Path) -> None:
    code = (
        HEAD
        + "class Net(nn.Flatten):\n    def __init__(self):\n        super().__init__()\n        self.home = __file__\n"
    )
    code += "    def forward(self, x):\n        return super().forward(x)[:, :5]\n"
    one, other = (load(written(tmp_path / name, net=code), source="net.py:Net") for name in "ab")
    assert one.identity == other.identity


def test_arguments_go_to_the_factory_and_files_among_them_count_by_content(tmp_path: Path) -> None:
    code = (
        "import numpy\nimport torch\n\ndef make(file, scale=1.0):\n"
        "    weights = torch.from_numpy(numpy.load(file))\n    return lambda x: scale * x.flatten(1) @ weights\n"
    )
    (a, b) = (written(tmp_path / name, net=code) for name in "ab")
    for place in (a, b):
        np.save(place / "w.npy", np.arange(768 * 5, dtype=np.float32).reshape(768, 5))
    whole = [load(place, source="net.py:make", arguments={"file": str(place / "w.npy")}) for place in (a, b)]
    relative = load(a, source="net.py:make", arguments={"file": "w.npy"})
    identities = [one.identity for one in (*whole, relative)]
    assert identities[0] == identities[1] == identities[2]
    assert str(tmp_path) not in json.dumps(identities)
    other = load(a, source="net.py:make", arguments={"file": str(a / "w.npy"), "scale": 2.0})
    assert other.identity != identities[0]
    code = "from torch import nn\n\ndef make(home, size=5, more=None):\n    return lambda x: x.flatten(1)[:, :size]\n"
    made = [
        load(written(place, other=code), source="other.py:make", arguments={"home": home, "more": [home, 1.5, None]})
        for place in (a, b)
        for home in (str(place), str(place / "nothing"), "~/nothing", ".")
    ]
    assert len({json.dumps(one.identity) for one in made}) == 1
    assert str(tmp_path) not in json.dumps(made[0].identity)
    assert load(a, source="other.py:make", arguments={"home": ".", "more": "x"}).identity != made[0].identity
    assert "unexpected keyword argument 'k'" in refused(a, source="net.py:make", arguments={"file": "w.npy", "k": 1})


def test_modules_beside_a_file_win_over_others_of_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = types.ModuleType("helpers")
    monkeypatch.setitem(sys.modules, "helpers", other)
    for name, value in ("one", 1), ("two", 2):
        code = HEAD + "import helpers\n\ndef scaled():\n    net = make()\n    return lambda x: helpers.VALUE * net(x)\n"
        written(tmp_path / name, net=code, helpers=f"VALUE = {value}\n")
    first, second = (load(tmp_path / name, source="net.py:scaled") for name in ("one", "two"))
    torch.testing.assert_close(2 * first.model(images()), second.model(images()))
    assert first.identity["code_sha256"] != second.identity["code_sha256"]
    assert sys.modules["helpers"] is other


def test_files_of_a_package_may_import_relatively(tmp_path: Path) -> None:
    code = "from .parts import head\nfrom .. import WIDTH\n\ndef make():\n    return head(WIDTH)\n"
    parts = "from torch import nn\n\ndef head(width):\n    return nn.Sequential(nn.Flatten(), nn.Linear(width, 5))\n"
    package(tmp_path / "kit", tmp_path / "kit" / "nets")
    written(tmp_path, kit__nets__net=code, kit__nets__parts=parts)
    assert load(tmp_path, source="kit/nets/net.py:make").label == "net.py:make"
    assert not [name for name in sys.modules if name.partition(".")[0] == "kit"]


def test_modules_by_name_are_found_in_the_folder_and_known_by_their_own_source(tmp_path: Path) -> None:
    def known() -> object:
        try:
            found = load(tmp_path, source="kit.net:make")
            return found.label, found.identity
        finally:  # as in another process
            for name in [name for name in sys.modules if name.partition(".")[0] == "kit"]:
                del sys.modules[name]
            shutil.rmtree(tmp_path / "kit" / "__pycache__", ignore_errors=True)

    package(tmp_path / "kit")
    code = HEAD.replace("768", "parts.W").replace("import torch\n", "from . import parts\n")
    written(tmp_path, kit__net=code, kit__other="", kit__parts="W = 768\n")
    first = known()
    written(tmp_path, kit__other="X = 1\n")
    assert known() == first
    written(tmp_path, kit__parts="W = 700 + 68\n")
    assert known() != first


def test_a_module_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    assert 'the module "no.such" cannot be imported' in refused(tmp_path, source="no.such:make")
    assert 'there is no file "sub/net.py"' in refused(tmp_path, source="sub/net.py:make")


# --- weights


def test_weights_fit_or_what_does_not_is_named(network_files: Path, tmp_path: Path) -> None:
    for name in ("net.py", "layers.py"):
        (tmp_path / name).write_text((network_files / name).read_text())
    state = network().state_dict()
    cases = {
        "less.safetensors": (
            {key: value for key, value in state.items() if key != "6.bias"},
            "lacks 1 of the network's 9",
        ),
        "more.safetensors": (state | {"extra": torch.ones(1)}, "it has 1 that the network lacks (extra)"),
        "other.safetensors": (
            state | {"6.bias": torch.ones(4)},
            "has in another shape 1 of the network's 9 tensors (6.bias)",
        ),
    }
    for name, (tensors, said) in cases.items():
        save_file(tensors, tmp_path / name)
        assert said in refused(tmp_path, source="net.py:make", weights=name)
    for name, saved, said in (
        ("list.pt", [torch.ones(2)], "holds no weights by name"),
        ("both.pt", {"state_dict": state, "model": state}, "holds several sets of weights"),
        ("step.pt", {"step": 3}, "holds no weights by name"),
    ):
        torch.save(saved, tmp_path / name)
        assert said in refused(tmp_path, source="net.py:make", weights=name)
    (tmp_path / "page.safetensors").write_text("<html>404</html>")
    assert "cannot be read as weights" in refused(tmp_path, source="net.py:make", weights="page.safetensors")
    (tmp_path / "page.pt").write_text("<html>404</html>")
    refused(tmp_path, source="net.py:make", weights="page.pt")
    assert "no file of weights" in refused(tmp_path, source="net.py:make", weights="nothing.pt")
    (tmp_path / "call.py").write_text("def make():\n    return lambda x: x.flatten(1)[:, :5]\n")
    save_file(state, tmp_path / "w.safetensors")
    assert "weights are for a module" in refused(tmp_path, source="call.py:make", weights="w.safetensors")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
@pytest.mark.parametrize("inside", ["", "state_dict", "model"])
def test_weights_that_a_wrapper_saved_are_understood(
    network_files: Path, tmp_path: Path, prefix: str, inside: str
) -> None:
    for name in ("net.py", "layers.py"):
        (tmp_path / name).write_text((network_files / name).read_text())
    state = {f"{prefix}{key}": value for key, value in network().state_dict().items()}
    torch.save({inside: state, "epoch": 3} if inside else state, tmp_path / "w.pt")
    found = load(tmp_path, source="net.py:make", weights="w.pt")
    assert torch.equal(found.model(images()), network()(images()))


def test_files_with_their_own_weights_take_no_others(network_files: Path) -> None:
    assert "holds its own weights" in refused(network_files, source="script.pt", weights="net.safetensors")


@pytest.mark.slow
def test_a_large_network_fits_into_little_memory() -> None:
    """ResNet-18 with 1,000 classes on 224 × 224 images, probed and asked."""
    code = """
import resource, torch
from robbench.models._external.loading import load_external
from robbench.models._external.request import ExternalRequest
found = load_external(ExternalRequest(source="torchvision:resnet18"), (3, 224, 224), 1000)
x = torch.rand(64, 3, 224, 224, requires_grad=True)
found.model(x).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4 * 2**20
