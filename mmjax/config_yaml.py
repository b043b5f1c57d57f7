"""YAML text as a tree of nodes that remember where they were written.

The scalar rules are those of YAML 1.2 without its surprises: `true` and `false` are booleans, `null`, `~` and nothing
are null, decimal numbers are numbers (`1e-3` and `.5` too), and everything else is text: `no`, `on`, `1:30`, `010`,
`1_000`, dates. Aliases, tags and second documents are refused, so no text grows while it is read.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import yaml
from yaml.composer import Composer, ComposerError
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from mmjax.errors import ConfigError

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 32
"""Levels of nesting; a config needs six."""

Scalar = bool | int | float | str | None
Locate = Callable[[int], str]
"""`locate(line) -> where`: the place of a line, counted from 1, as error messages name it."""

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_UNTEXT = re.compile("[\x00\ud800-\udfff]")


class Node(NamedTuple):
    """A value and the place where it, or the key that holds it, was written."""

    value: "Scalar | tuple[Node, ...] | dict[str, Node]"
    where: str
    text: str = ""
    """A scalar as written."""


def resolve_scalar(text: str) -> Scalar:
    """Return the value of a scalar written without quotes.

    >>> [resolve_scalar(text) for text in ("1e-3", ".5", "12", "True", "~", "no", "010", "1:30", "1_000")]
    [0.001, 0.5, 12, True, None, 'no', '010', '1:30', '1_000']
    """
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text[0] in "tT"
    if _INT.fullmatch(text) and len(text) <= 100:  # Python refuses to read thousands of digits as an int
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def parse_yaml(text: str, locate: Locate) -> tuple[Node, list[str]]:
    """Return the one document in `text` as a Node, and the problems that do not stop reading (a key given twice).

    ConfigError when it is no YAML, too large, nested too deeply, or uses what a config does not: aliases, tags,
    several documents.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"{locate(1)}: expected at most {MAX_CHARACTERS} characters, got {len(text)}")
    try:
        tree = _BoundedComposer(text).get_single_node()
    except ReaderError as error:
        where = locate(text.count("\n", 0, error.position) + 1)
        raise ConfigError(f"{where}: invalid YAML: the character {error.character:#06x} is not allowed") from error
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_syntax_problem(error, locate)) from error
    except (ValueError, OverflowError) as error:  # an escape beyond Unicode, a version number of thousands of digits
        raise ConfigError(f"{locate(1)}: invalid YAML: an escape or a version number is out of range") from error
    reading = _Reading(locate, [])
    root = Node(None, locate(1)) if tree is None else _convert(tree, reading, "", _place(tree, reading))
    return root, reading.problems


class _BoundedComposer(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML's composer, with bounded depth and without aliases and tags."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            refused = "anchors (&x), aliases (*x) and merge keys are not supported; repeat the value, or use `extends`"
            raise ComposerError(None, None, refused, event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise ComposerError(None, None, "tags (!x) are not supported", event.start_mark)
        if self.depth == MAX_DEPTH:
            raise ComposerError(None, None, f"nested more than {MAX_DEPTH} levels deep", event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _syntax_problem(error: yaml.MarkedYAMLError, locate: Locate) -> str:
    mark = error.problem_mark or error.context_mark
    where = locate(mark.line + 1 if mark else 1)
    said = ", ".join(part for part in (error.context, error.problem) if part)
    hint = "; indent with spaces, not tabs" if r"'\t'" in said else ""
    return f"{where}: invalid YAML: {said}{hint}"


class _Reading(NamedTuple):
    locate: Locate
    problems: list[str]


def _convert(tree: yaml.Node, reading: _Reading, path: str, where: str) -> Node:
    match tree:
        case yaml.MappingNode():
            return Node(_convert_mapping(tree, reading, path), where)
        case yaml.SequenceNode():
            items = enumerate(tree.value)
            return Node(tuple(_convert(x, reading, f"{path}[{i}]", _place(x, reading)) for i, x in items), where)
        case _:
            reading.problems.extend(check_text(tree.value, path, where))
            plain = getattr(tree, "style", None) is None
            return Node(resolve_scalar(tree.value) if plain else tree.value, where, tree.value)


def _convert_mapping(tree: yaml.MappingNode, reading: _Reading, path: str) -> dict[str, Node]:
    entries: dict[str, Node] = {}
    for key_tree, value_tree in tree.value:
        where = _place(key_tree, reading)
        if not isinstance(key_tree, yaml.ScalarNode):
            reading.problems.append(f"{where}: {path or 'top level'}: expected a key, got a list or a mapping as key")
            continue
        key = key_tree.value
        key_path = join_path(path, key)
        reading.problems.extend(check_text(key, key_path, where))
        if key in entries:
            reading.problems.append(f"{where}: {key_path}: key given twice, first at {entries[key].where}; remove one")
            continue
        entries[key] = _convert(value_tree, reading, key_path, where)
    return entries


def check_text(text: str, path: str, where: str) -> tuple[str, ...]:
    """Return the problem of a text that holds NUL or half a surrogate pair, else nothing."""
    if found := _UNTEXT.search(text):
        return (f"{where}: {path}: expected text, got the character {ord(found.group()):#06x}; remove it",)
    return ()


def _place(tree: yaml.Node, reading: _Reading) -> str:
    return reading.locate(tree.start_mark.line + 1)


def join_path(path: str, key: str) -> str:
    """Return the path of `key` inside the section `path` (empty: the top level).

    >>> join_path("training", "epochs"), join_path("", "seed"), join_path("model", "a.b")
    ('training.epochs', 'seed', "model.'a.b'")
    """
    return f"{path}.{show_key(key)}" if path else show_key(key)


def show_key(key: str) -> str:
    """Return a key as messages show it: bare when it is a plain word, else quoted, escaped and cut to 60 characters.

    >>> show_key("epochs"), show_key("a.b")
    ('epochs', "'a.b'")
    """
    return key if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,59}", key) else ascii(key[:60])
