"""Decoding of YAML to dataclasses: known keys, right types, and errors of one line with their path."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from redistill.config import decode as decoding
from redistill.config import parse
from redistill.errors import ConfigError
from redistill.storage.redaction import printable


@dataclass(frozen=True, kw_only=True)
class Circle:
    radius: float = 1.0

    def __post_init__(self) -> None:
        if self.radius < 0:
            raise ConfigError(f"radius = {self.radius}: must be >= 0")


@dataclass(frozen=True, kw_only=True)
class SquareConfig:
    side: int
    corners: tuple[str, ...] = ("round",)


@dataclass(frozen=True, kw_only=True)
class Group:
    inner: "Shape | None" = None


@dataclass(frozen=True, kw_only=True)
class LocalSetup:
    """A member that declares its kind, which is the default."""

    kind: ClassVar[str] = "local"

    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class RemoteSetup:
    address: str = "here"


Shape = Circle | SquareConfig | Group
NAMES = {"Shape": Shape}


@dataclass(frozen=True, kw_only=True)
class Page:
    title: str
    shape: Shape | None = None
    size: tuple[int, int] = (2, 3)
    layers: int | tuple[int, ...] = 1
    mode: Literal["fast", "slow"] = "fast"
    sources: dict[str, str | None] = field(default_factory=dict)
    rate: float = 0.5
    draft: bool = False
    group: Group = field(default_factory=Group)
    engine: LocalSetup = field(default_factory=LocalSetup)
    store: LocalSetup | RemoteSetup | None = None


def decode(**tree):
    return decoding.decode(Page, {"title": "t", **tree}, NAMES)


def error_of(**tree):
    with pytest.raises(ConfigError) as caught:
        decode(**tree)
    line = str(caught.value)
    assert "\n" not in line
    return line


# --- decoding -----------------------------------------------------------------------------------------------------------


def test_every_kind_of_field_is_decoded():
    page = decode(
        shape={"kind": "square", "side": 2, "corners": ["a", "b"]},
        size=[4, 5],
        layers=[0, 1],
        mode="slow",
        sources={"a": "x", "b": None},
        rate=1,
        draft=True,
        group={"inner": {"kind": "group", "inner": "circle"}},
    )
    assert page == Page(
        title="t",
        shape=SquareConfig(side=2, corners=("a", "b")),
        size=(4, 5),
        layers=(0, 1),
        mode="slow",
        sources={"a": "x", "b": None},
        rate=1.0,
        draft=True,
        group=Group(inner=Group(inner=Circle())),
    )
    assert type(page.rate) is float


def test_a_number_that_yaml_parses_as_text_is_accepted():
    """YAML 1.1 parses 5e-4 as text, since it has no decimal point."""
    assert parse.parse_yaml(b"rate: 5e-4", "s") == {"rate": "5e-4"}
    assert decode(rate="5e-4").rate == 0.0005


def test_a_single_text_is_a_list_of_one():
    assert decode(shape={"kind": "square", "side": 1, "corners": "sharp"}).shape.corners == ("sharp",)


REJECTED = {
    "unknown, near": ({"titel": 1}, "titel: no such section; did you mean 'title'?"),
    "unknown, far": ({"group": {"zzz": 1}}, "group.zzz: no such field; allowed are inner"),
    "not a key": ({"group": {1: 1}}, "group.1: no such field"),
    "text for a number": ({"rate": "fast"}, "rate = 'fast': must be a number"),
    "truth for a number": ({"rate": True}, "rate = True: must be a number"),
    "number for a truth": ({"draft": 1}, "draft = 1: must be true or false"),
    "number for text": ({"title": 3}, "title = 3: must be text"),
    "null where none may be": ({"rate": None}, "rate = None: must be a number"),
    "fraction for a whole number": (
        {"shape": {"kind": "square", "side": 1.5}},
        "shape.side = 1.5: must be a whole number",
    ),
    "no such value": ({"mode": "medium"}, "mode = 'medium': must be 'fast' or 'slow'"),
    "a list as a value": ({"mode": ["fast"]}, "mode = ['fast']: must be 'fast' or 'slow'"),
    "wrong length": ({"size": [1]}, "size = [1]: must have 2 values"),
    "wrong item": ({"size": [1, "b"]}, "size[1] = 'b': must be a whole number"),
    "no list": ({"size": 3}, "size = 3: must be a list"),
    "no alternative matches": ({"layers": "few"}, "layers = 'few': must be a whole number or a list"),
    "no mapping": ({"group": 3}, "group = 3: must be a mapping of fields"),
    "no mapping of sources": ({"sources": ["a"]}, "sources = ['a']: must be a mapping"),
    "wrong value in a mapping": ({"sources": {"a": 3}}, "sources.a = 3: must be text"),
    "kind missing": ({"shape": {"side": 1}}, "shape.kind: missing; choose one of circle, square, group"),
    "kind near": ({"shape": "sqare"}, "shape.kind = 'sqare': no such kind; did you mean 'square'?"),
    "kind far": ({"shape": "xyz"}, "shape.kind = 'xyz': no such kind; choose one of circle, square, group"),
    "field missing": ({"shape": "square"}, "shape.side: missing; it has no default"),
    "out of range": ({"shape": {"kind": "circle", "radius": -1}}, "shape.radius = -1.0: must be >= 0"),
    "default kind, near": ({"engine": {"kind": "locl"}}, "engine.kind = 'locl': no such kind; did you mean 'local'?"),
    "default kind, far": ({"engine": "vllm"}, "engine.kind = 'vllm': no such kind; choose one of local"),
    "default kind, class name": ({"store": "local_setup"}, "store.kind = 'local_setup': no such kind"),
    "default kind, null": ({"engine": {"kind": None}}, "engine.kind: missing; choose one of local"),
    "default kind, unknown field": ({"engine": {"thread": 2}}, "engine.thread: no such field; did you mean 'threads'?"),
    "default kind, another's field": ({"store": {"address": "there"}}, "store.address: no such field; allowed are threads"),
    "default kind, no mapping": ({"engine": 3}, "engine.kind: missing; choose one of local"),
    "external default kind": (
        {"engine": "own:Engine"},
        "engine.kind = 'own:Engine': external classes are not accepted; use a kind that redistill defines",
    ),
    "deep": (
        {"group": {"inner": {"kind": "circle", "radios": 1}}},
        "group.inner.radios: no such field; did you mean 'radius'?",
    ),
}


@pytest.mark.parametrize("case", REJECTED)
def test_the_error_starts_with_the_path(case):
    tree, expected = REJECTED[case]
    assert error_of(**tree).startswith(expected)


def test_a_kind_is_rejected_if_there_is_only_one():
    assert error_of(group={"kind": "circle"}).startswith("group.kind: no such field")


def test_a_declared_kind_is_optional():
    for tree in ({}, {"engine": {}}, {"engine": "local"}, {"engine": {"kind": "local"}}, {"engine": {"threads": 1}}):
        assert decode(**tree).engine == LocalSetup()
    assert decode(engine={"threads": 4}).engine == LocalSetup(threads=4)
    assert decode(store={"threads": 4}).store == LocalSetup(threads=4), "the member that declares its kind is the default"
    assert decode(store="remote_setup").store == RemoteSetup() and decode().store is None


def test_a_declared_kind_is_encoded():
    tree = decoding.encode(decode(store={"threads": 4}), NAMES)
    assert tree["engine"] == {"kind": "local", "threads": 1} and tree["store"] == {"kind": "local", "threads": 4}
    assert "kind" not in tree["group"], "there is no alternative"


def test_a_subclass_has_a_kind_of_its_own():
    class Nearby(LocalSetup):
        """Its kind differs from that of its parent."""

    assert (decoding.kind_of(LocalSetup), decoding.kind_of(Nearby)) == ("local", "nearby")


def test_kinds_are_class_names_in_snake_case():
    class ForwardKL: ...

    class DacKLConfig: ...

    class StudentGenerated: ...

    assert [decoding.kind_of(cls) for cls in (ForwardKL, DacKLConfig, StudentGenerated)] == [
        "forward_kl",
        "dac_kl",
        "student_generated",
    ]


# --- there and back -----------------------------------------------------------------------------------------------------

wholes = st.integers(-(2**63), 2**63)
shapes = st.recursive(
    st.builds(Circle, radius=st.floats(0, 9)) | st.builds(SquareConfig, side=wholes),
    lambda inner: st.builds(Group, inner=st.none() | inner),
    max_leaves=3,
)
texts = st.text().map(lambda text: " ".join(printable(text).splitlines()))  # other text is rejected
pages = st.builds(
    Page,
    title=texts,
    shape=st.none() | shapes,
    size=st.tuples(wholes, wholes),
    layers=wholes | st.lists(wholes).map(tuple),
    mode=st.sampled_from(["fast", "slow"]),
    sources=st.dictionaries(texts, st.none() | texts),
    rate=st.floats(allow_nan=False),
    draft=st.booleans(),
    group=st.builds(Group, inner=st.none() | shapes),
    engine=st.builds(LocalSetup, threads=wholes),
    store=st.none() | st.builds(LocalSetup, threads=wholes) | st.builds(RemoteSetup, address=texts),
)


@given(pages)
def test_decoding_inverts_encoding(page):
    tree = decoding.encode(page, NAMES)
    assert decoding.decode(Page, tree, NAMES) == page
    assert_plain(tree)


def assert_plain(tree):
    if isinstance(tree, dict):
        assert all(isinstance(key, str) for key in tree)
        for item in tree.values():
            assert_plain(item)
    elif isinstance(tree, list):
        for item in tree:
            assert_plain(item)
    else:
        assert tree is None or isinstance(tree, str | int | float | bool)


# --- YAML ---------------------------------------------------------------------------------------------------------------


@given(st.text(alphabet="ab: -[]{}&*!\"'#\n|>%@`,?1.0\ue000", max_size=40).map(str.encode) | st.binary(max_size=40))
@example(b"a: 2020-13-45")
@example(b"a: !!int x")
@example(b"a: !!float x")
@example(b"a: !!binary x")
@example(b"a: !!timestamp x")
@example(b"a: !!bool x")
@example(b"? [a]\n: b")
@example(b"? {a: b}\n: c")
@example(b"<<: 1")
@example(b"a: &a {<<: *a}")
@example(b"a: 1__:_")
@example(b"a: 0x_")
def test_any_input_is_parsed_to_a_mapping_or_rejected_on_one_line(text):
    try:
        tree = parse.parse_yaml(text, "recipe")
    except ConfigError as error:
        assert str(error).startswith("recipe: ") and "\n" not in str(error)
    else:
        assert isinstance(tree, dict)


def test_a_few_aliases_are_accepted():
    assert parse.parse_yaml(b"a: &a [1]\nb: *a\nc: *a", "s") == {"a": [1], "b": [1], "c": [1]}


def test_a_duplicate_key_is_rejected_with_its_line():
    with pytest.raises(ConfigError, match="duplicate key 'b' in the mapping that starts in line 2"):
        parse.parse_yaml(b"a:\n  b: 1\n  b: 2\n", "s")


# --- overrides ----------------------------------------------------------------------------------------------------------


def applied(tree, *overrides):
    return parse.apply_overrides(tree, map(parse.parse_override, overrides))


@given(st.text(max_size=20))
@example("{a: 1}")
@example("1 # comment")
def test_a_value_is_not_parsed_again(value):
    assert parse.apply_overrides({}, [parse.Override("a.b", value)]) == {"a": {"b": value}}


@pytest.mark.parametrize("path", ["", "a.", "out=x #.y", "a b", "a\n", "é", "a-b"])
def test_a_path_consists_of_names(path):
    with pytest.raises(ConfigError, match="must be names joined by dots"):
        parse.apply_overrides({}, [parse.Override(path, 1)])


def test_overrides_set_any_depth_and_do_not_change_the_tree():
    tree = {"a": {"b": 1}, "c": 2}
    found = applied(tree, "a.b=[1, 2]", "d.e.f=x", "c=null", "g=a=b")
    assert found == {"a": {"b": [1, 2]}, "c": None, "d": {"e": {"f": "x"}}, "g": "a=b"}
    assert tree == {"a": {"b": 1}, "c": 2}


def test_an_override_below_a_bare_kind_keeps_the_kind():
    assert applied({"shape": "circle"}, "shape.radius=2") == {"shape": {"kind": "circle", "radius": 2}}


def test_later_overrides_have_precedence():
    assert applied({}, "a=1", "a=2") == {"a": 2}


@pytest.mark.parametrize("override", ["a", "=1", "", "a.b", "out #=1", "a..b=1", ".a=1", "a.=1", "a b=1", "a\n=1", "a: {b=1"])
def test_an_override_of_another_form_is_rejected(override):
    with pytest.raises(ConfigError, match="an override has the form"):
        applied({}, override)


@given(st.text(alphabet="ab.=[]{}: &*!2", max_size=20))
@example("a=2020-13-45")
@example("a=!!int x")
def test_any_override_is_applied_or_rejected_on_one_line(override):
    try:
        applied({"a": {"b": 1}}, override)
    except ConfigError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("separator", ["\n", "\u2028", "\u2029"])
def test_a_text_with_several_lines_is_rejected(separator):
    for text in (separator, f"a{separator}", f"a{separator}b"):
        for tree in ({"corners": [text]}, {text: 1}):
            with pytest.raises(ConfigError, match="contains a line feed"):
                decoding.decode(SquareConfig, tree, NAMES)


@pytest.mark.parametrize("length", [decoding.MAX_TEXT, decoding.MAX_TEXT + 1])
def test_a_long_text_is_rejected_and_truncated_in_the_error(length):
    text = ("x" * 199 + "/") * (length // 200) + "x" * (length % 200)
    tree = {"corners": [text], "side": 1}
    if length <= decoding.MAX_TEXT:
        assert decoding.decode(SquareConfig, tree, NAMES).corners == (text,)
        return
    with pytest.raises(
        ConfigError, match=r"corners\[0\] = 'x+\.\.\.[x/]+': is 2001 characters long; must be at most 2000"
    ) as caught:
        decoding.decode(SquareConfig, tree, NAMES)
    assert len(str(caught.value)) < 250


@dataclass(frozen=True)
class FilesConfig:
    train: tuple[str, ...]
    model: str = "any name"


def test_a_text_that_cannot_be_a_path_is_rejected_where_a_path_is_expected():
    text = "é" * 127 + "/" + "x" * 255
    assert decoding.decode(FilesConfig, {"train": [text]}, NAMES).train == (text,)
    for long in ("é" * 128, text + "x", f"a/{'x' * 256}/b"):
        assert decoding.decode(FilesConfig, {"train": ["a"], "model": long}, NAMES).model == long
        with pytest.raises(ConfigError, match=r"^train\[0\] = .*: a part of the path has 256 bytes; must be at most 255"):
            decoding.decode(FilesConfig, {"train": [long]}, NAMES)
