"""A tree of nodes checked against the config's structs: all that is wrong in it, each with its place.

The structs in `mmjax.config` are the only list of keys, types and ranges; `msgspec.inspect` reads them here.
"""

import difflib
import functools
import math
import re
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import inspect

from mmjax.config import Config
from mmjax.config_words import INT_LIMIT, describe, describe_type, mismatch, unwrap
from mmjax.config_yaml import Node, join_path
from mmjax.errors import did_you_mean

_BROKEN = object()

T = TypeVar("T", bound=msgspec.Struct)


class Findings(NamedTuple):
    """What is wrong so far: `problems` for the user, and `broken`, the key paths whose value could not be taken."""

    problems: list[str]
    broken: set[str]
    root: type[msgspec.Struct] = Config
    """What the tree is to become."""

    def reject(self, node: Node, path: str, problem: str) -> object:
        """Note a problem with the value at `path` and return the mark of a value that could not be taken."""
        self.problems.append(f"{node.where}: {path or 'top level'}: {problem}")
        self.broken.add(path)
        return _BROKEN


def build_config(tree: Node, findings: Findings) -> Config:
    """Return the Config in `tree`; what is wrong goes to `findings`, and its default stands in its place."""
    config = _build(inspect.type_info(Config), tree, "", findings)
    return config if isinstance(config, Config) else _placeholder(inspect.type_info(Config))


def build_struct(kind: type[T], tree: Node, problems: list[str]) -> T | None:
    """Return another struct than the Config in `tree`, checked in the same way; None when problems were added."""
    before = len(problems)
    made = _build(inspect.type_info(kind), tree, "", Findings(problems, set(), kind))
    return made if len(problems) == before else None


def _build(kind: inspect.Type, node: Node, path: str, findings: Findings) -> Any:
    match kind:
        case inspect.Metadata(type=inner) if not isinstance(inner, inspect.StrType):
            return _build(inner, node, path, findings)
        case inspect.UnionType():
            return _build_union(kind, node, path, findings)
        case inspect.StructType() if isinstance(node.value, dict):
            return _build_struct(kind, node.value, node, path, findings)
        case inspect.TupleType() | inspect.VarTupleType() if isinstance(node.value, tuple):
            return _build_list(kind, node.value, node, path, findings)
        case _:
            problem = _scalar_problem(kind, node)
            return _value_of(kind, node) if problem is None else findings.reject(node, path, problem)


def _value_of(kind: inspect.Type, node: Node) -> Any:
    return float(node.text) if isinstance(kind, inspect.FloatType) else node.value


def _build_union(kind: inspect.UnionType, node: Node, path: str, findings: Findings) -> Any:
    members = [member for member in kind.types if not isinstance(member, inspect.NoneType)]
    if node.value is None and len(members) < len(kind.types):
        return None
    fitting = members if len(members) == 1 else [m for m in members if _shape(m) == _shape_of(node.value)]
    if len(fitting) == 1 and not (len(members) > 1 and isinstance(node.value, dict)):
        if "list" not in map(_shape, members) and _scalar_problem(fitting[0], node) is not None and len(members) > 1:
            return findings.reject(node, path, mismatch(kind, node))  # so that all options are told
        return _build(fitting[0], node, path, findings)
    return findings.reject(node, path, mismatch(kind, node))


def _shape(kind: inspect.Type) -> str:
    """Return which of several kinds a key may have: a list, a number, true or false, or a word."""
    match unwrap(kind):
        case inspect.BoolType():
            return "bool"
        case inspect.TupleType() | inspect.VarTupleType():
            return "list"
        case inspect.FloatType() | inspect.IntType():
            return "number"
        case _:
            return "word"


def _shape_of(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    return "list" if isinstance(value, tuple) else "number" if isinstance(value, int | float) else "word"


def _build_struct(
    kind: inspect.StructType, entries: dict[str, Node], node: Node, path: str, findings: Findings
) -> msgspec.Struct:
    fields = {field.encode_name: field for field in kind.fields}
    values: dict[str, Any] = {}
    for key, child in entries.items():
        if key not in fields:
            _reject_unknown(key, child, path, tuple(fields), findings)
            continue
        value = _build(fields[key].type, child, join_path(path, key), findings)
        if value is not _BROKEN:
            values[key] = value
    for key, field in fields.items():
        if field.required and key not in values:
            key_path = join_path(path, key)
            if key_path not in findings.broken:
                findings.reject(node, key_path, f"missing; expected {describe_type(field.type)}")
            values[key] = _placeholder(field.type)
    return kind.cls(**values)


def _build_list(
    kind: inspect.TupleType | inspect.VarTupleType,
    items: tuple[Node, ...],
    node: Node,
    path: str,
    findings: Findings,
) -> Any:
    if isinstance(kind, inspect.TupleType):
        kinds, fits = kind.item_types, len(items) == len(kind.item_types)
    else:
        kinds = (kind.item_type,) * len(items)
        fits = (kind.min_length or 0) <= len(items) <= (len(items) if kind.max_length is None else kind.max_length)
    if not fits:
        return findings.reject(node, path, mismatch(kind, node))
    values = tuple(_build(k, x, f"{path}[{i}]", findings) for i, (k, x) in enumerate(zip(kinds, items, strict=True)))
    return _BROKEN if any(value is _BROKEN for value in values) else values


def _placeholder(kind: inspect.Type) -> Any:
    """Return a stand-in for a required value that is missing or wrong; it is never seen outside the checks."""
    match kind:
        case inspect.Metadata():
            return _placeholder(kind.type)
        case inspect.StructType():
            return kind.cls(**{field.name: _placeholder(field.type) for field in kind.fields if field.required})
        case inspect.FloatType():
            return 0.0
        case _:
            return ""


def _reject_unknown(key: str, node: Node, path: str, options: tuple[str, ...], findings: Findings) -> None:
    key_path = join_path(path, key)
    elsewhere = _same_name_elsewhere(key, path, findings.root)
    near = difflib.get_close_matches(key[:60].lower(), options, n=1, cutoff=0.6)
    findings.broken.update(elsewhere or [join_path(path, name) for name in near])
    findings.broken.update(guess.rpartition(".")[0] for guess in elsewhere if path)
    if "." in key:
        hint = "; nest it: one section a line, each indented further"
    elif elsewhere:
        hint = f"; did you mean {' or '.join(repr(p) for p in elsewhere)}?"
    else:
        hint = f"; did you mean {near[0]!r}?" if near else ""
    findings.reject(node, key_path, f"unknown key; options: {', '.join(options)}{hint}")


def _same_name_elsewhere(key: str, path: str, root: type[msgspec.Struct]) -> list[str]:
    paths = [known for known in key_paths(root) if known.rpartition(".")[2] == key]
    nearer = [known for known in paths if path and known.startswith(path.partition(".")[0] + ".")]
    return (nearer or paths)[:3]


@functools.cache
def key_paths(root: type[msgspec.Struct] = Config) -> tuple[str, ...]:
    """Return every key path of a config that is no section, in the order of the structs."""
    return tuple(path for path, _ in walk_fields(inspect.type_info(root)))


def walk_fields(kind: inspect.Type, path: str = "") -> Iterator[tuple[str, inspect.Field]]:
    """Yield every key path under a struct type with its field, sections not included."""
    section = section_of(kind)
    for field in section.fields if section else ():
        inner = join_path(path, field.encode_name)
        if section_of(field.type):
            yield from walk_fields(field.type, inner)
        else:
            yield inner, field


def section_of(kind: inspect.Type) -> inspect.StructType | None:
    """Return the struct that a type is, or is when it is not null; None for other types."""
    match kind:
        case inspect.StructType():
            return kind
        case inspect.Metadata():
            return section_of(kind.type)
        case inspect.UnionType():
            return next((found for member in kind.types if (found := section_of(member))), None)
        case _:
            return None


def _scalar_problem(kind: inspect.Type, node: Node) -> str | None:
    """Return what is wrong with a node where a scalar (or, for another kind, a list or mapping) is due, or None."""
    match unwrap(kind), node.value:
        case inspect.BoolType(), bool():
            return None
        case inspect.StrType() as text, str(value):
            fits = len(value) >= (text.min_length or 0) and re.fullmatch(text.pattern or ".*", value, re.DOTALL)
            return None if fits else mismatch(kind, node)
        case inspect.LiteralType(values=options), str(value):
            return (
                None if value in options else mismatch(kind, node) + did_you_mean(value[:60].lower(), map(str, options))
            )
        case (inspect.IntType() | inspect.FloatType()) as number, bool():
            return mismatch(number, node)
        case inspect.IntType() as number, int(value):
            return _range_problem(number, value, node)
        case inspect.FloatType() as number, int() | float():
            return _range_problem(number, to_float32(float(node.text)), node)
        case _:
            return mismatch(kind, node)


def to_float32(value: float) -> float:
    """Return the float32 nearest to `value`, as the device will see it; an infinity where it is too large."""
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


def _range_problem(kind: inspect.IntType | inspect.FloatType, value: float, node: Node) -> str | None:
    if not math.isfinite(value):
        return f"expected a number that float32 can hold, got {describe(node)}"
    within = (
        (kind.ge is None or value >= kind.ge)
        and (kind.gt is None or value > kind.gt)
        and (kind.le is None or value <= kind.le)
        and (kind.lt is None or value < kind.lt)
    )
    if within:
        return None
    if isinstance(kind, inspect.IntType) and value >= INT_LIMIT:
        return f"expected a whole number < {INT_LIMIT}, got {describe(node)}"
    rounded = "" if value == float(node.text) else f" ({value:g} in float32)"
    return f"{mismatch(kind, node)}{rounded}"
