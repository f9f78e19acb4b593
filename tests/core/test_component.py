from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from robbench.core.attack import Attack
from robbench.core.component import AskedAs, Component, NoIdentity, OmittedAtDefault, number
from robbench.core.errors import RequestError
from robbench.core.registry import Mark, Registration, Registry
from robbench.planning.component_spec import Choice, choose, plain, read_text, split_outside_brackets
from robbench.results.schema import digest


@dataclass(frozen=True)
class Sample(Component):
    """A component with a field of every sort."""

    version: ClassVar[int] = 3

    count: Annotated[int, Field(ge=1)] = 10
    size: Annotated[float, Field(gt=0)] = 0.5
    flag: bool = True
    mode: Literal["slow", "fast"] = "slow"
    word: str = "plain"
    limit: float | None = None
    counts: tuple[int, ...] = ()
    shares: tuple[float, ...] = (0.5, 0.5)
    names: tuple[str, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)


def registered(preset: dict[str, object] | None = None) -> Registry:
    """A registry that holds nothing but ``Sample``."""
    entry = Registration(Mark("balancer", "sample", preset or {}), Sample, "sample.py", None, None)
    return Registry(_found={"balancer": {"sample": entry}})


def chosen(wanted: object, preset: dict[str, object] | None = None) -> Choice[Any]:
    return choose(registered(preset), "balancer", wanted, "here")


# --- fields


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"count": 0}, "count = 0: Input should be greater than or equal to 1"),
        ({"count": 1.0}, "count = 1.0"),
        ({"count": True}, "count = True"),
        ({"count": "3"}, "count = '3'"),
        ({"size": 0}, "size = 0"),
        ({"size": math.nan}, "size = nan"),
        ({"size": math.inf}, "size = inf"),
        ({"size": "0.5"}, "size = '0.5'"),
        ({"flag": 1}, "flag = 1"),
        ({"mode": "quick"}, "mode = 'quick'"),
        ({"word": 3}, "word = 3"),
        ({"counts": (1, "2")}, "counts = (1, '2')"),
        ({"counts": 1}, "counts = 1"),
        ({"pair": (1.0,)}, "pair = (1.0,)"),
    ],
)
def test_values_are_checked_on_construction(values: dict[str, Any], part: str) -> None:
    with pytest.raises(RequestError) as caught:
        Sample(**values)
    assert part in str(caught.value)


def test_components_are_frozen_hashable_and_equal_by_value() -> None:
    assert Sample(count=3) == Sample(count=3) != Sample(count=4)
    assert len({Sample(), Sample(), Sample(size=0.25)}) == 2
    with pytest.raises(FrozenInstanceError):
        Sample().count = 3  # type: ignore[misc]


def test_equal_values_are_one_identity_however_they_are_written() -> None:
    written: list[dict[str, Any]] = [{"size": 1, "shares": [1, 2]}, {"size": 1.0, "shares": (1.0, 2.0)}]
    one, two = (Sample(**values) for values in written)
    assert one == two
    assert digest(plain(one.parameters())) == digest(plain(two.parameters()))
    assert isinstance(one.size, float)
    assert one.shares == (1.0, 2.0)


def test_parameters_are_all_and_changes_those_that_differ() -> None:
    component = Sample(count=3, shares=(0.5, 0.5))
    assert list(component.parameters()) == list(Sample.field_names())
    assert component.changed({}) == {"count": 3}
    assert component.changed({"count": 3}) == {}
    assert component.changed({"shares": [0.1, 0.9]}) == {"count": 3, "shares": (0.5, 0.5)}


def test_making_names_what_is_wrong() -> None:
    with pytest.raises(RequestError, match=r'^here: unknown parameter "coutn"; did you mean "count"\?$'):
        Sample.make({"coutn": 3}, "here")
    with pytest.raises(RequestError, match=r"^here: count = 0: "):
        Sample.make({"count": "0"}, "here")

    @dataclass(frozen=True)
    class Needy(Component):
        need: int
        more: tuple[int, ...] = field(default_factory=tuple)

    # Annotations are read where the class is defined.
    Needy.__annotations__ = {"need": int, "more": tuple[int, ...]}
    with pytest.raises(RequestError, match=r'^here: parameter "need" is required$'):
        Needy.make({}, "here")
    assert Needy.make({"need": "3"}, "here") == Needy(3)


def test_what_a_component_must_do_cannot_be_left_out() -> None:
    @dataclass(frozen=True)
    class Idle(Attack):
        pass

    with pytest.raises(RequestError, match="perturb"):
        Idle.make({}, "here")


# --- text


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("sample", {}),
        (" sample ", {}),
        ("sample[count=3]", {"count": 3}),
        ("sample[ count = 3 , size = 8/255 ]", {"count": 3, "size": 8 / 255}),
        ("sample[size=1]", {"size": 1.0}),
        ("sample[size=1e-3]", {"size": 0.001}),
        ("sample[flag=false]", {"flag": False}),
        ("sample[mode=fast]", {"mode": "fast"}),
        ("sample[word=8/255]", {"word": "8/255"}),
        ("sample[word=3]", {"word": "3"}),
        ("sample[word=true]", {"word": "true"}),
        ("sample[limit=3]", {"limit": 3.0}),
        ("sample[counts=1|2|3]", {"counts": (1, 2, 3)}),
        ("sample[counts=7]", {"counts": (7,)}),
        ("sample[shares=1|1/4]", {"shares": (1.0, 0.25)}),
        ("sample[names=1|2]", {"names": ("1", "2")}),
        ("sample[names=cat]", {"names": ("cat",)}),
        ("sample[pair=0|2]", {"pair": (0.0, 2.0)}),
    ],
)
def test_texts_are_read_as_the_fields_want_them(text: str, values: dict[str, Any]) -> None:
    assert chosen(text).component == Sample(**values)
    assert chosen({"name": "sample", **values}).component == Sample(**values)


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        ("sampel", 'no balancer "sampel"; did you mean "sample"?'),
        ("sample[cuont=3]", 'balancer "sample": unknown parameter "cuont"; did you mean "count"?'),
        ("sample[count=0]", "count = 0: Input should be greater than or equal to 1"),
        ("sample[count=1.5]", "count = '1.5'"),
        ("sample[count=99999999999999999999]", "count = "),
        ("sample[size=-1/2]", "size = -0.5: Input should be greater than 0"),
        ("sample[size=1/0]", "size = '1/0'"),
        ("sample[size=nan]", "size = 'nan'"),
        ("sample[flag=yes]", "flag = 'yes'"),
        ("sample[mode=medium]", "mode = 'medium'"),
        ("sample[counts=1|x]", "counts = '1|x'"),
        ("sample[count=3", "the bracket is not closed"),
        ("sample[count=3]x", "the bracket is not closed"),
        ("sample[]", "not of the form key=value"),
        ("sample[count=]", '"count=" is not of the form key=value'),
        ("sample[=3]", '"=3" is not of the form key=value'),
        ("sample[count]", '"count" is not of the form key=value'),
        ("", "names nothing"),
        ("[count=3]", "names nothing"),
        (3, "3 is not a balancer"),
        ({"count": 3}, "is not a balancer"),
        ({"name": 3}, "is not a balancer"),
        ({"name": "sample", "count": "many"}, "count = 'many'"),
        ({"name": "sample", "count": {"a": 1}}, "count = {'a': 1}"),
        ({"name": "sample", "counts": [[1]]}, "counts = ((1,),)"),
    ],
)
def test_what_cannot_be_chosen_is_refused_with_a_reason(wanted: object, part: str) -> None:
    with pytest.raises(RequestError) as caught:
        chosen(wanted)
    assert part in str(caught.value)
    assert str(caught.value).startswith("here: ")


words = st.text("abcxyz0123456789._-/ é", min_size=1, max_size=8).map(str.strip).filter(bool)
numbers = st.floats(allow_nan=False, allow_infinity=False).map(lambda value: value + 0.0)  # no negative zero
values = st.fixed_dictionaries(
    {},
    optional={
        "count": st.integers(1, 2**62),
        "size": st.floats(1e-300, 1e300),
        "flag": st.booleans(),
        "mode": st.sampled_from(["slow", "fast"]),
        "word": words,
        "limit": numbers,
        "counts": st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=3).map(tuple),
        "shares": st.lists(numbers, min_size=1, max_size=3).map(tuple),
        "names": st.lists(words, min_size=1, max_size=3).map(tuple),
        "pair": st.tuples(numbers, numbers),
    },
)


@given(values=values, preset=values)
def test_a_label_asks_for_the_same_component_again(values: dict[str, Any], preset: dict[str, Any]) -> None:
    choice = chosen({"name": "sample", **values}, preset)
    assert choice.component == Sample(**{**preset, **values})
    again = chosen(choice.label, preset)
    assert again.component == choice.component
    assert again.label == choice.label
    assert again.spec() == choice.spec()


def test_a_label_says_what_differs_from_what_the_name_means() -> None:
    assert chosen("sample").label == "sample"
    assert chosen("sample[size=0.25,count=3]").label == "sample[count=3,size=0.25]"
    assert chosen("sample[count=10]").label == "sample"
    assert chosen("sample[count=10]", {"count": 4}).label == "sample[count=10]"
    assert chosen("sample", {"count": 4}).label == "sample"
    assert chosen("sample", {"count": 4}).component.count == 4
    assert chosen("sample[flag=false,counts=1|2]").label == "sample[counts=1|2,flag=false]"


def test_a_choice_is_identified_by_name_version_source_and_all_parameters() -> None:
    spec = chosen("sample[count=3,shares=1|2]").spec()
    assert (spec.name, spec.version, spec.source) == ("sample", 3, None)
    assert spec.parameters == plain(Sample(count=3, shares=(1.0, 2.0)).parameters())
    assert spec.parameters["shares"] == [1.0, 2.0]
    assert spec.parameters["flag"] is True


# --- parts of the grammar


@given(st.integers(-(10**6), 10**6), st.integers(1, 10**6))
def test_fractions_are_numbers(top: int, bottom: int) -> None:
    assert number(f"{top}/{bottom}") == top / bottom
    assert number(f" {top} / {bottom} ") == top / bottom


@pytest.mark.parametrize("text", ["", "x", "1/0", "0/0", "1/", "/2", "1/2/3", "one"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the texts are Python's own
        number(text)


@given(st.lists(st.text("ab[]+,=", max_size=6).filter(lambda t: t.count("[") == t.count("]")), min_size=1, max_size=4))
def test_splitting_keeps_every_character(parts: list[str]) -> None:
    text = "+".join(parts)
    assert "+".join(split_outside_brackets(text, "+")) == text


def test_splitting_leaves_brackets_whole() -> None:
    assert split_outside_brackets("a[x=1+2]+b+c[y=[+]]", "+") == ["a[x=1+2]", "b", "c[y=[+]]"]


@given(st.text("ab[]=,| ", max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        name, options = read_text(text, "here")
    except RequestError:
        return
    assert name == name.strip() != ""
    assert all(key.strip() and str(value).strip() for key, value in options.items())


# --- fields that are no part of the identity


@dataclass(frozen=True)
class Placed(Component):
    size: int = 3
    path: Annotated[str, NoIdentity] = ""
    threads: Annotated[int, Field(ge=1), NoIdentity] = 1
    cache: Annotated[str | None, NoIdentity] = None
    nested: Annotated[str, NoIdentity] | None = None


@dataclass(frozen=True)
class More(Placed):
    scale: float = 1.0


@pytest.mark.parametrize("cls", [Placed, More])
@pytest.mark.parametrize(
    "values", [{"path": "/home/me/x"}, {"threads": 4}, {"cache": "c"}, {"nested": "n"}, {"path": "a", "threads": 2}]
)
def test_where_something_lies_changes_neither_keys_nor_labels(cls: type[Placed], values: dict[str, Any]) -> None:
    usual, moved = (Choice("x", made, None, "x") for made in (cls(), cls(**values)))
    assert moved.component != usual.component
    assert moved.spec() == usual.spec()
    assert moved.component.changed({}) == moved.component.changed({"path": "elsewhere"}) == {}
    assert moved.component.identity() == cls().identity()
    assert not moved.component.identity().keys() & values.keys()
    assert moved.component.parameters() | values == moved.component.parameters()
    assert cls(size=4, **values).changed({}) == {"size": 4}


def test_a_field_without_identity_is_checked_like_any_other() -> None:
    with pytest.raises(RequestError, match="threads = 0"):
        Placed(threads=0)
    assert Placed.make({"path": "/x", "threads": "2"}, "here") == Placed(path="/x", threads=2)
    assert Placed.unidentifying() == More.unidentifying() == {"path", "threads", "cache", "nested"}
    assert not Sample.unidentifying()


# --- fields that came later, or are asked for by another name


@dataclass(frozen=True)
class Grown(Sample):
    later: Annotated[int, Field(ge=1), OmittedAtDefault] = 1
    form: Annotated[Literal["plain", "rich"], AskedAs("version"), OmittedAtDefault] = "plain"


def grown(wanted: object, **preset: object) -> Choice[Any]:
    entry = Registration(Mark("balancer", "sample", preset), Grown, "sample.py", None, None)
    return choose(Registry(_found={"balancer": {"sample": entry}}), "balancer", wanted, "here")


def test_a_field_that_came_later_leaves_keys_as_they_were() -> None:
    assert grown("sample").spec() == chosen("sample").spec()
    assert grown("sample[later=1,version=plain]").spec() == chosen("sample").spec()
    assert grown("sample[count=3]").spec() == chosen("sample[count=3]").spec()
    for text in ("sample[later=2]", "sample[version=rich]", "sample[later=2,version=rich]"):
        assert grown(text).label == text
        assert grown(text).spec().parameters.keys() > chosen("sample").spec().parameters.keys()
        assert grown(grown(text).label).component == grown(text).component
    # A preset is what a label tells of, a default what keys leave out.
    assert grown("sample[later=1]", later=2).label == "sample[later=1]"
    assert grown("sample[later=1]", later=2).spec().parameters == chosen("sample").spec().parameters
    assert grown("sample", later=2).label == "sample"
    assert grown("sample", later=2).spec().parameters["later"] == 2


def test_a_field_is_asked_for_by_the_name_that_it_is_given() -> None:
    choice = grown({"name": "sample", "version": "rich"})
    assert (choice.component.form, choice.component.version, choice.spec().version) == ("rich", 3, 3)
    assert Grown.field_names() == (*Sample.field_names(), "later", "version")
    assert Grown.make(choice.component.parameters(), "here") == choice.component
    assert choice.component.changed({}) == choice.component.changed({"version": "plain"}) == {"version": "rich"}
    assert choice.component.changed({"version": "rich"}) == {}
    with pytest.raises(RequestError, match='unknown parameter "form"'):
        grown("sample[form=rich]")
    with pytest.raises(RequestError, match="version = 'poor': Input should be 'plain' or 'rich'"):
        grown("sample[version=poor]")
