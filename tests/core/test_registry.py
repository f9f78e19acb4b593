from __future__ import annotations

import importlib.metadata
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from plugin_files import write

import robbench
from robbench import attacks
from robbench.core import registry
from robbench.core.attack import Attack
from robbench.core.component import Component
from robbench.core.contracts import Balancer, Defense
from robbench.core.errors import RequestError, did_you_mean
from robbench.core.registry import KINDS, Registry, register_attack, register_balancer, register_defense

PLUGIN = '''
from dataclasses import dataclass
from robbench import Balancer, register_balancer

@register_balancer("heavy", weight=9.0)
@register_balancer("light")
@dataclass(frozen=True)
class Weighty(Balancer):
    """Weighs.

    More about it.
    """

    weight: float = 1.0
'''


def test_built_in_components_are_found_by_kind() -> None:
    found = Registry(installed=False)
    assert {"fgm", "fgsm", "pgd", "perturbation", "none"} <= set(found.entries("attack"))
    assert {"none", "fgm", "perturbation"} <= set(found.entries("defense"))
    assert {"digits", "digits-imbalanced", "cifar10", "image-folder"} <= set(found.entries("dataset"))
    assert {"cross-entropy", "angular"} <= set(found.entries("objective"))
    assert {"resnet18", "small-cnn"} <= set(found.entries("architecture"))
    assert {"smote", "sampler", "class-weights"} <= set(found.entries("balancer"))
    for kind in KINDS:
        entries = found.entries(kind)
        assert list(entries) == sorted(entries)
        assert all(entry.mark.kind == kind and entry.mark.name == name for name, entry in entries.items())
        assert found.entries(kind) is entries


def test_a_file_in_the_kinds_package_is_all_that_registration_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PLUGIN.replace("Balancer, register_balancer", "Defense, register_defense").replace("(Balancer)", "(Defense)")
    write(tmp_path / "weighty.py", text.replace("register_balancer", "register_defense"))
    import robbench.defenses

    assert "heavy" not in Registry(installed=False).entries("defense")
    monkeypatch.setattr(robbench.defenses, "__path__", [*robbench.defenses.__path__, str(tmp_path)])
    entries = Registry(installed=False).entries("defense")
    assert entries["heavy"].file == str(tmp_path / "weighty.py")
    assert entries["heavy"].source is None
    del sys.modules["robbench.defenses.weighty"]
    delattr(robbench.defenses, "weighty")


def test_one_class_may_have_several_names_with_presets(tmp_path: Path) -> None:
    entries = Registry((write(tmp_path / "plugin.py", PLUGIN),), installed=False).entries("balancer")
    heavy, light = entries["heavy"], entries["light"]
    assert heavy.cls is light.cls
    assert (heavy.mark.preset, light.mark.preset) == ({"weight": 9.0}, {})
    assert heavy.summary == "Weighs."
    assert heavy.file == str(tmp_path / "plugin.py")
    assert heavy.plugin is not None
    assert heavy.plugin.startswith("plugin.py ")


def test_a_subclass_is_not_registered_under_its_parents_name(tmp_path: Path) -> None:
    text = PLUGIN + "\n@register_balancer('other')\n@dataclass(frozen=True)\nclass Other(Weighty):\n    'Other.'\n"
    entries = Registry((write(tmp_path / "plugin.py", text),), installed=False).entries("balancer")
    assert entries["heavy"].cls.__name__ == "Weighty"
    assert entries["other"].cls.__name__ == "Other"


def test_imported_components_are_not_registered_again(tmp_path: Path) -> None:
    text = "from robbench.defenses.fgm import FGMTraining\nfrom robbench.attacks.fgm import FGM\n"
    plugin = write(tmp_path / "plugin.py", text)
    for kind in KINDS:
        names = list(Registry(installed=False).entries(kind))
        assert list(Registry((plugin,), installed=False).entries(kind)) == names


def test_registries_do_not_share_plugins(tmp_path: Path) -> None:
    plugin = write(tmp_path / "plugin.py", PLUGIN)
    assert "heavy" in Registry((plugin,), installed=False).entries("balancer")
    assert "heavy" not in Registry(installed=False).entries("balancer")
    importlib.import_module("robbench.data.balancing")
    assert not hasattr(robbench, "heavy")


def test_a_plugins_source_is_hashed_and_an_edit_seen_at_once(tmp_path: Path) -> None:
    plugin = write(tmp_path / "plugin.py", PLUGIN)
    first = Registry((plugin,), installed=False).entry("balancer", "heavy")
    assert Registry((plugin,), installed=False).entry("balancer", "heavy") == first
    write(plugin, PLUGIN.replace("weight: float = 1.0", "weight: float = 2.0"))
    second = Registry((plugin,), installed=False).entry("balancer", "heavy")
    assert first.source != second.source
    assert second.cls.make({}, "").parameters() == {"weight": 2.0}
    write(plugin, PLUGIN)
    assert Registry((plugin,), installed=False).entry("balancer", "heavy").source == first.source


def test_two_plugins_of_one_file_name_do_not_get_into_each_others_way(tmp_path: Path) -> None:
    here = write(tmp_path / "a" / "plugin.py", PLUGIN)
    there = write(
        tmp_path / "b" / "plugin.py", PLUGIN.replace('"heavy"', '"heaviest"').replace('"light"', '"lightest"')
    )
    entries = Registry((here, there), installed=False).entries("balancer")
    assert {"heavy", "light", "heaviest", "lightest"} <= set(entries)


def test_one_name_twice_in_one_file_is_refused(tmp_path: Path) -> None:
    text = PLUGIN + "\n@register_balancer('light')\n@dataclass(frozen=True)\nclass Other(Balancer):\n    'Other.'\n"
    found = Registry((write(tmp_path / "plugin.py", text),), installed=False)
    with pytest.raises(RequestError, match=r'are named "light": .*plugin\.py and .*plugin\.py; rename'):
        found.entries("balancer")


def test_names_may_repeat_across_kinds() -> None:
    found = Registry(installed=False)
    assert found.entry("attack", "fgm").cls is not found.entry("defense", "fgm").cls


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_name_is_answered_with_the_nearest(kind: Any) -> None:
    found = Registry(installed=False)
    name = next(iter(found.entries(kind)))
    with pytest.raises(RequestError) as caught:
        found.entry(kind, f"{name}x", "here")
    assert str(caught.value).startswith(f'here: there is no {kind} "{name}x"; did you mean "')
    with pytest.raises(RequestError, match="known: .*" + name):
        found.entry(kind, "§§§§§§§§")


# --- entry points


def installed(monkeypatch: pytest.MonkeyPatch, *points: Any) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [p for p in points if p.group == group])


def point(name: str, module: str, group: str = registry.ENTRY_POINTS) -> Any:
    return SimpleNamespace(
        name=name, module=module, value=module, group=group, dist=SimpleNamespace(version="2.5", name=name)
    )


def test_installed_plugins_are_those_of_the_entry_point_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "one_plugin_module.py", PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    installed(monkeypatch, point("one", "one_plugin_module"), point("no", "no_such_module", group="other.plugins"))
    (plugin,) = Registry().plugins()
    assert plugin.label == "one 2.5"
    entry = Registry().entry("balancer", "heavy")
    assert (entry.plugin, entry.source) == ("one 2.5", plugin.source)
    assert Registry(installed=False).plugins() == ()
    del sys.modules["one_plugin_module"]


@pytest.mark.parametrize("text", ["def broken(:", "1 / 0", "import sys; sys.exit(3)"])
def test_an_installed_plugin_that_is_broken_is_named(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "broken_plugin_module.py", text)
    monkeypatch.syspath_prepend(str(tmp_path))
    installed(monkeypatch, point("one", "broken_plugin_module"))
    with pytest.raises(RequestError, match=r'installed plugin "one" \(broken_plugin_module\) cannot be loaded'):
        Registry().entries("attack")


def test_every_file_of_an_installed_package_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "whole_package" / "__init__.py", "")
    write(tmp_path / "whole_package" / "helper.py", "X = 1\n")
    write(tmp_path / "whole_package" / "plugin.py", PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    installed(monkeypatch, point("whole", "whole_package.plugin"))
    before = Registry().entry("balancer", "heavy").source
    write(tmp_path / "whole_package" / "helper.py", "X = 2\n")
    assert Registry().entry("balancer", "heavy").source != before
    for name in [name for name in sys.modules if name.startswith("whole_package")]:
        del sys.modules[name]


def test_a_file_that_is_installed_as_well_is_a_clash_that_names_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write(tmp_path / "file_plugin.py", PLUGIN)
    write(tmp_path / "clashing_module.py", PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    installed(monkeypatch, point("one", "clashing_module"))
    with pytest.raises(RequestError) as caught:
        Registry((other,)).entries("balancer")
    assert str(other) in str(caught.value)
    assert str(tmp_path / "clashing_module.py") in str(caught.value)
    del sys.modules["clashing_module"]


# --- marking


@pytest.mark.parametrize("name", ["", "a b", "a[b", "a]", "a@b", "a+b", "a=b", "a,b", "a|b", "a>b", "a\tb", "a\nb"])
def test_names_that_the_grammar_cannot_take_are_refused(name: str) -> None:
    with pytest.raises(RequestError, match="cannot be the name"):
        register_defense(name)


def test_norms_are_checked_where_they_are_written() -> None:
    with pytest.raises(RequestError, match='attack "x": unknown norm "l22"; did you mean "l2"'):
        register_attack("x", norms=("l22",))  # type: ignore[arg-type]
    with pytest.raises(RequestError, match='attack "x" names no norm'):
        register_attack("x", norms=())


def test_a_component_is_of_the_kind_that_it_is_registered_as() -> None:
    class NoAttack(Defense):
        pass

    class Nothing:
        pass

    for cls in (NoAttack, Nothing, Component):
        with pytest.raises(RequestError, match=f'attack "x": class {cls.__name__} is not derived from robbench.Attack'):
            register_attack("x", norms=("linf",))(cls)  # type: ignore[type-var]

    @register_balancer("twice")
    @register_balancer("once")
    @dataclass(frozen=True)
    class Fine(Balancer):
        pass

    assert [mark.name for mark in vars(Fine)["__robbench__"]] == ["once", "twice"]
    assert issubclass(Attack, Component)


def test_marking_alone_registers_nothing() -> None:
    @register_balancer("lonely")
    @dataclass(frozen=True)
    class Lonely(Balancer):
        pass

    assert "lonely" not in Registry(installed=False).entries("balancer")
    assert isinstance(attacks, ModuleType)


# --- hints


def test_hints_name_the_nearest_or_all() -> None:
    assert did_you_mean("fsgm", ["pgd", "fgsm"]) == 'did you mean "fgsm"?'
    assert did_you_mean("zzz", ["b", "a"]) == "known: a, b"
    assert did_you_mean("zzz", []) == "none is known"
    assert did_you_mean("zzz", map(str, range(1500))).endswith(" and 1,440 more")
