"""The schema file: a JSON file, in the vocabulary of JSON Schema, that says what columns are and what rows may hold."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from mmjax.errors import DataError, did_you_mean
from mmjax.schema import Column, Kind, Schema

JsonType = Literal["number", "integer", "string", "boolean"]
KIND = "x-mmjax-kind"
FORMATS = ("date", "date-time")
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TOP = ("$schema", "$id", "title", "description", "type", "properties", "required")
_KEYWORDS = ("type", "enum", "minimum", "maximum", "pattern", "format", KIND, "title", "description")


class DeclaredColumn(NamedTuple):
    """What a schema file says about one column; None and empty where it says nothing."""

    name: str
    type: JsonType | None = None
    kind: Kind | None = None
    enum: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    pattern: str | None = None
    format: str | None = None
    required: bool = False


class DeclaredSchema(NamedTuple):
    """What a schema file says: `columns` by name; `path` for messages."""

    path: str
    columns: dict[str, DeclaredColumn]


def read_schema_file(path: str | Path) -> DeclaredSchema:
    """Return what the file declares; DataError with every unknown keyword and impossible value, the column named."""
    found = _read_json(str(path))
    problems = _unknown(str(path), found, _TOP)
    if found.get("type", "object") != "object":
        problems.append(f'{path}: type: expected "object" (a row), got {json.dumps(found["type"])}')
    properties = found.get("properties", {})
    if not isinstance(properties, dict):
        raise DataError([*problems, f"{path}: properties: expected an object with a key for each column"])
    required = _required(str(path), found.get("required", []), properties, problems)
    columns = {
        name: _read_column(f"{path}: column '{name}'", name, keywords, name in required, problems)
        for name, keywords in properties.items()
    }
    if problems:
        raise DataError(problems)
    return DeclaredSchema(str(path), columns)


def schema_file_text(schema: Schema) -> str:
    """Return a schema file (JSON text) that declares the kinds of this Schema, so that a user can edit them."""
    target = schema.target
    properties: dict[str, Any] = {}
    for column in schema.columns:
        if column.name not in target.columns:
            properties[column.name] = _column_keywords(column, is_weight=column.name == schema.weight_column)
    for name in target.columns:
        outcome: dict[str, Any] = {"enum": list(target.texts(name))} if target.classes else {"type": "number"}
        declared = next((c for c in schema.columns if c.name == name), None)
        rules = _rules(declared) if declared else {}
        properties[name] = outcome | rules | {"description": f"the target: {target.reason}"}
    required = [c.name for c in schema.columns if c.required and c.name not in target.columns]
    text = {"$schema": _DIALECT, "type": "object", "properties": properties, "required": [*required, *target.columns]}
    return json.dumps(text, indent=2, ensure_ascii=False) + "\n"


def _column_keywords(column: Column, *, is_weight: bool) -> dict[str, Any]:
    types = {"numeric": "integer" if column.integer else "number", "boolean": "boolean"}
    keywords: dict[str, Any] = {"type": "number" if is_weight else types.get(column.kind, "string")}
    if not is_weight:
        keywords[KIND] = column.kind
    if column.kind == "datetime" and column.datetime_format == "iso":
        keywords["format"] = "date-time"
    if column.fixed_vocabulary:
        keywords["enum"] = list(column.vocabulary)
    return keywords | _rules(column) | {"description": column.reason}


def _rules(column: Column) -> dict[str, Any]:
    rules = {"minimum": column.minimum, "maximum": column.maximum, "pattern": column.pattern}
    return {name: value for name, value in rules.items() if value is not None}


def _read_json(path: str) -> dict[str, Any]:
    try:
        found = json.loads(
            Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant
        )
    except OSError as error:
        raise DataError(f"{path}: the schema file cannot be read ({error.strerror})") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: expected JSON, got {error.msg} at column {error.colno}") from error
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a JSON object with the key 'properties'")
    return found


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"expected every key once, got '{key}' twice")
        found[key] = value
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"expected finite numbers, got {name}")


def _unknown(where: str, found: Mapping[str, Any], known: tuple[str, ...]) -> list[str]:
    return [
        f"{where}: unknown keyword '{key}'; expected one of {', '.join(known)}{did_you_mean(key, known)}"
        for key in found
        if key not in known
    ]


def _required(path: str, found: Any, properties: Mapping[str, Any], problems: list[str]) -> frozenset[str]:
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        problems.append(f"{path}: required: expected a list of column names")
        return frozenset()
    problems += [
        f"{path}: required: unknown column '{name}'; list it under properties{did_you_mean(name, properties)}"
        for name in found
        if name not in properties
    ]
    return frozenset(found)


def _read_column(where: str, name: str, found: Any, required: bool, problems: list[str]) -> DeclaredColumn:
    if not isinstance(found, dict):
        problems.append(f"{where}: expected an object of keywords, got {json.dumps(found)}")
        return DeclaredColumn(name)
    problems += _unknown(where, found, _KEYWORDS)
    kind = _one_of(where, KIND, found.get(KIND), get_args(Kind), problems)
    json_type = _one_of(where, "type", _not_null(found.get("type")), get_args(JsonType), problems)
    form = _one_of(where, "format", found.get("format"), FORMATS, problems)
    enum = _enum(where, found.get("enum"), problems)
    if enum and kind not in (None, "categorical", "boolean"):
        problems.append(f"{where}: enum: expected only where {KIND} is categorical or boolean, got {kind}")
    low, high = (_number(where, key, found.get(key), problems) for key in ("minimum", "maximum"))
    if low is not None and high is not None and low > high:
        problems.append(f"{where}: expected minimum <= maximum, got {low:g} and {high:g}")
    pattern = _pattern(where, found.get("pattern"), problems)
    return DeclaredColumn(name, json_type, kind, enum, low, high, pattern, form, required)


def _not_null(found: Any) -> Any:
    """Return the one type in a list with "null" (whether a cell may be missing is said by `required`)."""
    rest = [item for item in found if item != "null"] if isinstance(found, list) else [found]
    return rest[0] if len(rest) == 1 else found


def _one_of(where: str, key: str, found: Any, options: tuple[Any, ...], problems: list[str]) -> Any:
    if found is None or (isinstance(found, str) and found in options):
        return found
    hint = did_you_mean(found, options) if isinstance(found, str) else ""
    problems.append(f"{where}: {key}: expected one of {', '.join(options)}, got {json.dumps(found)}{hint}")
    return None


def _number(where: str, key: str, found: Any, problems: list[str]) -> float | None:
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float):
        problems.append(f"{where}: {key}: expected a number, got {json.dumps(found)}")
        return None
    return float(found)


def _pattern(where: str, found: Any, problems: list[str]) -> str | None:
    try:
        return None if found is None else re.compile(found).pattern
    except (re.error, TypeError) as error:
        problems.append(f"{where}: pattern: expected a regular expression, got {json.dumps(found)} ({error})")
        return None


def _enum(where: str, found: Any, problems: list[str]) -> tuple[str, ...]:
    if found is None:
        return ()
    values = [value for value in found if value is not None] if isinstance(found, list) else []
    if not values or not all(isinstance(value, str | int | float) for value in values):
        problems.append(f"{where}: enum: expected a list of texts, numbers or booleans, got {json.dumps(found)}")
        return ()
    cells = tuple(value if isinstance(value, str) else json.dumps(value) for value in values)
    if len(set(cells)) < len(cells):
        problems.append(f"{where}: enum: expected every value once, got {json.dumps(found)}")
    return cells
