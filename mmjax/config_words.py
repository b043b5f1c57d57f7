"""Types and values of the config in words, for messages and documentation."""

import re

from msgspec import inspect

from mmjax.config_yaml import Node, resolve_scalar

INT_LIMIT = 2**31
"""Whole numbers of a config are below this; the bound is not spoken of unless it is passed."""


def mismatch(kind: inspect.Type, node: Node) -> str:
    """Return the problem of a node that is not of a type: what was expected, what was found, how to mend it."""
    hint = _units_hint(kind, node) or _hint(unwrap(kind), node)
    return f"expected {describe_type(kind)}, got {describe(node)}{hint}"


def _units_hint(kind: inspect.Type, node: Node) -> str:
    """Return how to write a number, or one with a word behind it, of a key whose text is a number and a unit."""
    if not isinstance(kind, inspect.Metadata) or not kind.extra:
        return ""
    units = kind.extra.get("units")
    number = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([A-Za-z]*)\s*", node.text[:40])
    value = resolve_scalar(number[1]) if number else None
    if not units or not number or isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    told = number[2].lower()
    one = told.removesuffix("s") if len(told) > 2 else told  # ms are no minutes
    meant = [unit for unit, word in units.items() if told and word.startswith("hour" if one == "hr" else one)]
    if (told and not meant) or value <= 0:
        return ""
    amount = f"{value:f}".rstrip("0").rstrip(".")
    forms = [f"{amount}{unit}" + ("" if meant else f" for {units[unit]}") for unit in meant or units]
    several = f"{', '.join(forms[:-1])} or {forms[-1]}" if len(forms) > 1 else forms[0]
    return f"; write {several}, as in {kind.extra['example']}"


def _hint(kind: inspect.Type, node: Node) -> str:
    text = node.text
    match kind, node.value:
        case _, None:
            return "; give a value or remove the key"
        case inspect.BoolType(), str():
            word = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(text.lower(), text.lower())
            return f"; write {word}" if word in ("true", "false") else ""
        case ((inspect.StrType() | inspect.LiteralType()), bool() | int() | float()):
            return f'; quote it: "{text}"' if isinstance(kind, inspect.StrType) else ""
        case inspect.UnionType(), bool() | int() | float() if any(
            isinstance(unwrap(member), inspect.StrType) for member in kind.types
        ):
            return f'; quote it: "{text}"'
        case ((inspect.IntType() | inspect.FloatType()), str()):
            return _number_hint(text)
        case inspect.IntType(), float(value) if value.is_integer() and abs(value) < INT_LIMIT:
            return f"; write {int(value)}"
        case ((inspect.TupleType() | inspect.VarTupleType()), bool() | int() | float() | str()):
            times = len(kind.item_types) if isinstance(kind, inspect.TupleType) else 1
            return f"; write a list: [{', '.join([text] * times)}]" if len(text) < 40 else ""
        case _:
            return ""


def _number_hint(text: str) -> str:
    bare = resolve_scalar(text.strip().replace("_", "").lstrip("0") or "0") if len(text) < 40 else text
    return f"; write {bare}" if isinstance(bare, int | float) and not isinstance(bare, bool) else ""


def describe_type(kind: inspect.Type) -> str:
    """Return a type as messages and documentation say it.

    >>> describe_type(inspect.IntType(ge=1, lt=2**31))
    'a whole number >= 1'
    """
    match kind:
        case inspect.Metadata(extra={"pattern_means": str(meaning)}):
            return meaning
        case inspect.Metadata():
            return describe_type(kind.type)
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return "a whole number" + _bounds(kind)
        case inspect.FloatType():
            return "a number" + _bounds(kind)
        case inspect.StrType():
            return "text that is not empty" if kind.min_length else "text"
        case inspect.LiteralType():
            return f"one of {', '.join(map(str, kind.values))}"
        case inspect.UnionType():
            return " or ".join(
                describe_type(member) for member in kind.types if not isinstance(member, inspect.NoneType)
            )
        case inspect.TupleType():
            return f"a list of {len(kind.item_types)}, each {describe_type(kind.item_types[0])}"
        case inspect.VarTupleType():
            least = f" of {kind.min_length} or more" if (kind.min_length or 0) > 1 else ""
            size = f" of {kind.min_length} to {kind.max_length}" if kind.max_length else least
            return f"a list{size}, each {describe_type(kind.item_type)}"
        case inspect.StructType():
            return f"a mapping with {', '.join(field.encode_name for field in kind.fields)}"
        case _:
            raise TypeError(f"no words for {kind}")


def _bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    signs = ((">=", kind.ge), (">", kind.gt), ("<=", kind.le), ("<", kind.lt))
    shown = [f"{sign} {bound:g}" for sign, bound in signs if bound is not None and bound < INT_LIMIT]
    return f" {' and '.join(shown)}" if shown else ""


def describe(node: Node) -> str:
    """Return what a node holds, in words for a message."""
    match node.value:
        case None:
            return "nothing"
        case bool():
            return "true" if node.value else "false"
        case str():
            return f"text {node.value[:60]!r}"
        case tuple():
            return f"a list of {len(node.value)}"
        case dict():
            return "a mapping"
        case _:
            return f"the number {node.text[:60]}"


def unwrap(kind: inspect.Type) -> inspect.Type:
    """Return a type without its description."""
    return kind.type if isinstance(kind, inspect.Metadata) else kind
