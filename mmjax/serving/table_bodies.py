"""Bodies that are a table: JSON becomes rows, then Columns, strictly, and what is wrong is said in its own words."""

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
import numpy as np

from mmjax.data.cells import missing_texts
from mmjax.data.encode import SHOWN, check_columns
from mmjax.errors import DataError, did_you_mean
from mmjax.schema import Columns, Schema
from mmjax.serving.wire import MAX_ROWS, Refused

LEGIBLE_BYTES = 256 * 1024
"""Bodies up to this size are read a second time to say better what is wrong."""

Cell = str | int | float | bool | None
NO_NUMBERS = frozenset({str, bool})
"""Types of cells that a numeric column refuses, but for texts that mean missing."""

C = TypeVar("C")


class TableRequest(msgspec.Struct, Generic[C], frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /predict/tabular`: exactly one of `features` and `rows`."""

    features: list[list[C]] | msgspec.UnsetType = msgspec.UNSET
    """Rows of cells in the order of the schema's features."""
    rows: list[dict[str, C]] | msgspec.UnsetType = msgspec.UNSET
    """Rows as column name -> cell."""
    model: str | msgspec.UnsetType | None = msgspec.UNSET
    version: int | msgspec.UnsetType | None = msgspec.UNSET
    deterministic: bool | msgspec.UnsetType = msgspec.UNSET
    """Each row alone in one fixed bucket, so that the bits of its answer depend on nothing else."""


_decoder = msgspec.json.Decoder(TableRequest[Cell])
_numbers_decoder = msgspec.json.Decoder(TableRequest[float | None])


def decode_table(body: bytes) -> TableRequest[Cell]:
    """Return the request in a JSON body; Refused (400) when it is no JSON, has other keys or doubled ones."""
    try:
        request = _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise Refused(400, "bad-request", _told(str(error))) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(400, "bad-json", f"body: expected JSON, got {no_json(body, error)}") from error
    _check_table(request, body)
    return request


def no_json(body: bytes, error: Exception, *, instead: str = "write null for a missing cell") -> str:
    """Return what a body is that is no JSON; `instead` is what to do where it has a NaN."""
    if not body.strip():
        return "nothing"
    if isinstance(error, UnicodeDecodeError):
        return "something else: not UTF-8"
    if len(body) <= LEGIBLE_BYTES and (found := _NO_NUMBER.search(_STRING.sub(b"", body))):
        return f"{found[0].decode()}, which JSON has not; {instead}"
    return f"something else: {error}"


def decode_numbers(body: bytes) -> TableRequest[float | None] | None:
    """Return the request in a JSON body whose cells are all numbers or null, whole numbers as floats; else None.

    The first text ends the try, so it costs others little. Refused where `decode_table` refuses such a body.
    """
    try:
        request = _numbers_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    _check_table(request, body)
    return request


def _check_table(request: TableRequest[Any], body: bytes) -> None:
    if (request.features is msgspec.UNSET) == (request.rows is msgspec.UNSET):
        raise Refused(
            400,
            "bad-request",
            'body: expected exactly one of "features" (rows of cells) and "rows" (rows by column name)',
        )
    keys = sum(getattr(request, name) is not msgspec.UNSET for name in request.__struct_fields__)
    refuse_doubled(body, keys + sum(map(len, request.rows or ())))


_WORDS = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
    "null": "null",
    "object": "an object",
    "str": "a text",
}
"""msgspec's names of types, in the words of JSON."""
_FIELDS = (
    "expected `features` (rows of cells) or `rows` (rows by column name), and perhaps `model`, `version`, "
    "`deterministic`"
)
_UNKNOWN = re.compile(r"unknown field `([^`]*)`")
_HINTS = {
    ("features", True): "; put each row in a list: [[...], [...]]",
    ("features", False): "; give a list of rows: [[...], [...]]",
    ("rows", True): "; give each row by column name: [{...}, {...}]",
    ("rows", False): "; give a list of rows: [{...}, {...}]",
}
"""What to do where a field, or (True) a row of it, has another shape."""
LONGEST_PLACE = 200
"""Characters of a place, and of what is told of it; a field's name may have millions."""
_PLACE = re.compile(r" - at `\$(.*)`$")
_CELL = re.compile(r"(?:\.(\w+))?(?:\[(\d+)\])?(?:\[(\d+|\.\.\.)\])?")


def _told(message: str) -> str:
    """Return msgspec's message in plain words with the place in front, rows counted from 1, and what to do.

    >>> _told("Expected `str | null`, got `object` - at `$.features[0][2]`")
    'features, row 1, cell 3: expected a text or null, got an object'
    >>> _told("Expected `array`, got `float` - at `$.features[0]`")
    'features, row 1: expected a list, got a number; put each row in a list: [[...], [...]]'
    """
    path, told = placed(message)
    if path is None:
        if unknown := _UNKNOWN.search(told):
            return f"body: {told}; {_FIELDS}{did_you_mean(unknown[1], TableRequest.__struct_fields__)}"
        return f"body: {json_words(told)}"
    told = json_words(told)
    field, row, cell = _CELL.findall(path)[0]
    place = field or "body"
    place += f", row {int(row) + 1}" if row else ""
    place += f", cell {int(cell) + 1}" if cell and cell.isdigit() else ""
    return f"{place}: {told}{'' if cell else _HINTS.get((field, bool(row)), '')}"


def placed(message: str) -> tuple[str | None, str]:
    """Return msgspec's message as the place below `$`, None where it has none, and what is told of it, both bounded.

    >>> placed("Expected `int`, got `float` - at `$.inputs[0].shape[1]`")
    ('.inputs[0].shape[1]', 'expected `int`, got `float`')
    """
    found = _PLACE.search(message, max(len(message) - LONGEST_PLACE, 0))
    stop = min(found.start() if found else LONGEST_PLACE, LONGEST_PLACE)
    return found[1] if found else None, message[0].lower() + message[1:stop]


def json_words(message: str) -> str:
    """Return msgspec's message with types in the words of JSON."""

    def words(found: re.Match[str]) -> str:
        names = [_WORDS[name] for name in found[1].split(" | ") if name in _WORDS]
        return " or ".join(names) or found[0]

    return re.sub(r"`([^`]*)`", words, message)


class TooLarge(NamedTuple):
    """A number in JSON that no float holds."""

    text: str


def decode_too_large(body: bytes) -> TableRequest[Any] | None:
    """Return a request that `decode_table` refuses for its numbers, those that no float holds as TooLarge; else None.

    It is slow, and only there to say in which columns they are: not for bodies above LEGIBLE_BYTES.
    """
    if len(body) > LEGIBLE_BYTES:
        return None

    def number(text: str) -> float | TooLarge:
        value = float(text)
        whole = text.removeprefix("-").isdecimal()
        return TooLarge(text) if math.isinf(value) else int(text) if whole else value

    try:
        return msgspec.convert(json.loads(body, parse_int=number, parse_float=number), TableRequest[Any])
    except (ValueError, RecursionError, msgspec.ValidationError):  # something else is wrong too
        return None


_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
"""A text in JSON; one that never ends goes on to the end of the body, or each quote in it would be tried anew."""
_NO_NUMBER = re.compile(rb"-?(?:NaN|Infinity)\b")


def refuse_doubled(body: bytes, keys: int) -> None:
    """Refuse (400) a JSON body in which an object has a key twice; it was decoded to objects of `keys` keys in all.

    msgspec keeps the last, so the text has more colons than we have keys.
    """
    if body.count(b":") == keys or _STRING.sub(b"", body).count(b":") == keys:
        return
    if lines := _doubled(body):
        raise Refused(400, "doubled-key", lines)


def _doubled(body: bytes) -> list[str]:
    """Return a line for each key that an object has twice; `rows` come before the object around them."""
    numbers, found = itertools.count(), []

    def look(pairs: list[tuple[str, Any]]) -> None:
        number = next(numbers)
        if len(found) < SHOWN and len(dict(pairs)) < len(pairs):
            found.extend((number, key, n) for key, n in Counter(key for key, _ in pairs).items() if n > 1)

    json.loads(body, object_pairs_hook=look, parse_int=str, parse_float=str)
    whole = next(numbers) - 1
    return [
        f"{'body' if number == whole else f'row {number + 1}'}: expected each key once, got '{key}' {n} times"
        for number, key, n in found[:SHOWN]
    ]


def columns_of_rows(schema: Schema, rows: list[list[Any]]) -> Columns:
    """Return rows of cells in the order of the schema's features as Columns.

    Refused naming row and column of texts in numeric columns, unless they mean missing in the schema.
    """
    names = [column.name for column in schema.features]
    cells = np.empty((len(rows), len(names)), dtype=object)
    if names:
        cells[:] = rows
    columns = {name: cells[:, k] for k, name in enumerate(names)}
    refuse_texts(schema, columns)
    return columns


def table_columns(schema: Schema, request: TableRequest[Cell]) -> Columns:
    """Return the request's rows as Columns of the schema's features; Refused, or DataError, naming rows and columns."""
    return columns_of_rows(schema, table_rows(schema, request))


def matrix_of_rows(rows: list[list[float | None]]) -> np.ndarray:
    """Return rows of numbers as f64[N, F], null as NaN."""
    return np.array(rows, np.float64)


def table_rows(schema: Schema, request: TableRequest[C]) -> list[list[C]]:
    """Return the request's rows in the order of the schema's features; Refused naming those that are none."""
    rows = request.features if request.rows is msgspec.UNSET else request.rows
    assert rows is not msgspec.UNSET
    if not rows:
        raise Refused(400, "no-rows", "expected at least one row, got none")
    if len(rows) > MAX_ROWS:
        raise Refused(413, "too-many-rows", f"expected at most {MAX_ROWS:,} rows in a request, got {len(rows):,}")
    names = [column.name for column in schema.features]
    if request.rows is msgspec.UNSET:
        return _from_lists(names, request.features or [])
    return _from_mappings(schema, names, request.rows)


def _from_lists(names: list[str], rows: list[list[C]]) -> list[list[C]]:
    wrong = [
        f"row {i}: expected {len(names)} cells ({', '.join(names)}), got {len(row)}"
        for i, row in enumerate(rows, 1)
        if len(row) != len(names)
    ]
    if wrong:
        raise Refused(400, "bad-row", wrong[:SHOWN])
    return rows


def _from_mappings(schema: Schema, names: list[str], rows: list[dict[str, C]]) -> list[list[C]]:
    sound, wrong = set(), []
    for i, row in enumerate(rows, 1):
        if (keys := tuple(row)) in sound or len(wrong) >= SHOWN:
            continue
        try:
            check_columns(schema, keys, where=f"row {i}")
            sound.add(keys)
        except DataError as error:
            wrong += error.problems
    if wrong:
        raise Refused(400, "bad-row", wrong[:SHOWN])
    return [[row[name] for name in names] for row in rows]


def refuse_texts(schema: Schema, columns: Columns) -> None:
    """Refuse (400) texts in numeric columns that do not mean missing, naming row and column."""
    gaps = missing_texts(schema.missing_markers)
    wrong = [
        f"column '{column.name}', row {i}: expected a number or null, got {_shown(cell)}{_unquote(cell)}"
        for column in schema.of_kind("numeric")
        if column.name in columns
        for i, cell in enumerate(columns[column.name].tolist(), 1)
        if type(cell) in NO_NUMBERS and (isinstance(cell, bool) or cell.strip() not in gaps)
    ]
    if wrong:
        more = [f"and {len(wrong) - SHOWN:,} more bad cells"] if len(wrong) > SHOWN else []
        raise Refused(400, "bad-cell", wrong[:SHOWN] + more)


def refuse_too_large(schema: Schema, rows: Sequence[Sequence[Any]]) -> None:
    """Refuse (400) cells that are TooLarge, naming row and column."""
    wrong = [
        f"column '{column.name}', row {i}: expected a number within ±3.4e38, got {cell.text[:80]}"
        for i, row in enumerate(rows, 1)
        for column, cell in zip(schema.features, row, strict=True)
        if isinstance(cell, TooLarge)
    ]
    if wrong:
        raise Refused(400, "bad-cell", wrong[:SHOWN])


def _shown(cell: str | bool) -> str:
    """Return a cell as JSON has it.

    >>> _shown("much"), _shown(True)
    ('the text "much"', 'true')
    """
    return f"the text {json.dumps(cell[:80])}" if isinstance(cell, str) else json.dumps(cell)


_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
"""A number as JSON writes it."""


def _unquote(cell: str | bool) -> str:
    """Return what to do where a number was sent as a text.

    >>> _unquote("5.1"), _unquote("much")
    ('; write 5.1 without quotes', '')
    """
    number = isinstance(cell, str) and len(cell) <= 80 and _NUMBER.fullmatch(cell.strip())
    return f"; write {number[0]} without quotes" if number else ""
