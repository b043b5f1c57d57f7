"""The YAML reader: YAML 1.2 scalars without surprises, and a clear refusal of all that a config does not need."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.config_yaml import MAX_CHARACTERS, MAX_DEPTH, Node, parse_yaml, resolve_scalar
from mmjax.errors import ConfigError


def locate(line: int) -> str:
    return f"c.yaml:{line}"


def plain(node: Node) -> Any:
    match node.value:
        case dict() as entries:
            return {key: plain(child) for key, child in entries.items()}
        case tuple() as items:
            return [plain(item) for item in items]
        case value:
            return value


def read(text: str) -> Any:
    node, problems = parse_yaml(text, locate)
    assert not problems
    return plain(node)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("0", 0),
        ("-7", -7),
        ("+7", 7),
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("2e+05", 2e5),
        (".5", 0.5),
        ("-.5e1", -5.0),
        ("3.", 3.0),
        ("0.10", 0.1),
        ("1e999", float("inf")),
        ("9" * 101, float("9" * 101)),
    ],
)
def test_scalars_that_are_values(text: str, value: object) -> None:
    found = resolve_scalar(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    ["no", "yes", "on", "off", "y", "tRUE", "nULL", "010", "00", "1:30", "1_000", "0x10", "0o7", "2024-01-31", ".nan",
     ".inf", "1e", "e5", ".", "-", "+", "1.2.3", "١٢", "5%"],
)  # fmt: skip
def test_scalars_that_stay_text(text: str) -> None:
    assert resolve_scalar(text) == text


def test_tree_keeps_values_and_places() -> None:
    node, problems = parse_yaml("# note\na:\n  b: [1, 'two',\n      three]\n\"c\": |\n  x\n", locate)
    assert problems == []
    assert plain(node) == {"a": {"b": [1, "two", "three"]}, "c": "x\n"}
    assert isinstance(node.value, dict)
    inner = node.value["a"].value
    assert isinstance(inner, dict)
    assert (node.value["a"].where, inner["b"].where, node.value["c"].where) == ("c.yaml:2", "c.yaml:3", "c.yaml:5")
    items = inner["b"].value
    assert isinstance(items, tuple)
    assert [item.where for item in items] == ["c.yaml:3", "c.yaml:3", "c.yaml:4"]


def test_quotes_make_text() -> None:
    assert read("[\"1\", 'true', \"\", '~']") == ["1", "true", "", "~"]


def test_empty_and_comment_only_are_null() -> None:
    assert read("") is None
    assert read("# nothing\n\n") is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3", "c.yaml:3: a: key given twice, first at c.yaml:1; remove one"),
        ("x:\n  a: 1\n  'a': 3", "c.yaml:3: x.a: key given twice, first at c.yaml:2; remove one"),
        ("l:\n- {a: 1, a: 2}", "c.yaml:2: l[0].a: key given twice, first at c.yaml:2; remove one"),
        ("? [a]\n: 1", "c.yaml:1: top level: expected a key, got a list or a mapping as key"),
        ('a: "\\0"', "c.yaml:1: a: expected text, got the character 0x0000; remove it"),
        ('a: ["\\ud800"]', "c.yaml:1: a[0]: expected text, got the character 0xd800; remove it"),
    ],
)
def test_problems_that_do_not_stop_reading(text: str, problem: str) -> None:
    assert parse_yaml(text, locate)[1] == [problem]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a:\n\tb: 1", "c.yaml:2: invalid YAML: while scanning for the next token, found character '\\t' that cannot "
                       "start any token; indent with spaces, not tabs"),
        ("a: ]", "c.yaml:1: invalid YAML: while parsing a block node, expected the node content, but found ']'"),
        ("a: b: c", "c.yaml:1: invalid YAML: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2", "c.yaml:2: invalid YAML: expected a single document in the stream, but found another "
                            "document"),
        ("a: &x 1", "c.yaml:1: invalid YAML: anchors (&x), aliases (*x) and merge keys are not supported; repeat the "
                    "value, or use `extends`"),
        ("a: 1\nb: *x", "c.yaml:2: invalid YAML: anchors (&x), aliases (*x) and merge keys are not supported; repeat "
                        "the value, or use `extends`"),
        ("a: !!python/object:os.system x", "c.yaml:1: invalid YAML: tags (!x) are not supported"),
        ("a: 1\nb: \x07", "c.yaml:2: invalid YAML: the character 0x0007 is not allowed"),
        ('a: "\\U99999999"', "c.yaml:1: invalid YAML: an escape or a version number is out of range"),
        ("%YAML 1." + "1" * 5000 + "\n---\na: 1", "c.yaml:1: invalid YAML: an escape or a version number is out of "
                                                    "range"),
        ("[" * 5000, f"c.yaml:1: invalid YAML: nested more than {MAX_DEPTH} levels deep"),
        ("- " * 1000 + "1", f"c.yaml:1: invalid YAML: nested more than {MAX_DEPTH} levels deep"),
        ("x" * (MAX_CHARACTERS + 1), f"c.yaml:1: expected at most {MAX_CHARACTERS} characters, got 1000001"),
    ],
)  # fmt: skip
def test_refusals(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, locate)
    assert caught.value.problems == (problem,)


def test_an_alias_bomb_is_refused_at_once() -> None:
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    with pytest.raises(ConfigError, match=r"c\.yaml:1: invalid YAML: anchors"):
        parse_yaml(bomb, locate)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab01 .:-[]{}#&*!|>'\"%@`?,\n\t\\~é\x00\ud800"), max_size=40))
def test_any_text_is_a_tree_or_a_config_error(text: str) -> None:
    try:
        node, problems = parse_yaml(text, locate)
    except ConfigError as error:
        problems = list(error.problems)
        assert len(problems) == 1
    else:
        plain(node)
    assert all(problem.startswith("c.yaml:") for problem in problems)
