"""The wire: bytes of a request become Columns, strictly; scores become bytes of a reply. No HTTP library here."""

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
import multipart
import numpy as np

from mmjax.artifact.predictor import Predictions, Predictor, set_texts, to_predictions
from mmjax.data.cells import missing_texts
from mmjax.data.encode import SHOWN, check_columns
from mmjax.errors import DataError, MmjaxError, did_you_mean
from mmjax.schema import Columns, Schema
from mmjax.training.scoring import Scores

MAX_TABLE_BYTES = 8 * 2**20
"""Largest body of a table request."""
MAX_IMAGE_BYTES = 16 * 2**20
"""Largest body of an image request."""
MAX_TENSOR_BYTES = 64 * 2**20
"""Largest body of a request of the Open Inference Protocol, once inflated; its JSON is at most MAX_TABLE_BYTES."""
MAX_ROWS = 4096
"""Rows of one table request."""
MAX_IMAGES = 16
"""Images of one request."""
MAX_PIXELS = 25_000_000
"""Pixels of one image: they are checked before any is decoded."""
LEGIBLE_BYTES = 256 * 1024
"""Bodies up to this size are read a second time to say better what is wrong."""
IMAGE_PART = "file"
"""Name of a multipart part that holds an image."""

Cell = str | int | float | bool | None
NO_NUMBERS = frozenset({str, bool})
"""Types of cells that a numeric column refuses, but for texts that mean missing."""

C = TypeVar("C")


class Refused(MmjaxError):
    """A request that is not answered: an HTTP status, a stable word for the reason, a line for each problem."""

    def __init__(self, status: int, reason: str, problems: str | Sequence[str], *, retry_after_s: int = 0) -> None:
        super().__init__(problems)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s


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


class ModelName(msgspec.Struct, frozen=True):
    """Which model answered; `version` is null for a bundle that is in no registry."""

    name: str
    version: int | None


class Reply(msgspec.Struct, frozen=True):
    """The answer for N rows or images, in the order they came."""

    predictions: list[int | float | list[int]]
    """Class indices, or values; of a model of several labels [N][L], 1 where a label holds, else 0."""
    labels: list[str | list[str]] | None
    """Class texts, or the names of the labels that hold for each row; null for regression."""
    probabilities: list[list[float]] | None
    """[N][K] in the order of the model's classes; of labels each by itself; null for regression."""
    inference_time_ms: float
    """The compiled call with its transfers, without decoding and waiting."""
    model: ModelName
    request_id: str
    uncertainty: list[float] | msgspec.UnsetType = msgspec.UNSET
    """How far the members of the model disagree, a number a row; absent for a model of one member."""
    sets: list[list[str]] | msgspec.UnsetType = msgspec.UNSET
    """[N]: the classes, or labels, in each row's conformal set; only with `training.coverage`."""
    intervals: list[list[float]] | msgspec.UnsetType = msgspec.UNSET
    """[N][2], lower and upper end; only of regressions trained with `training.coverage` or `loss: pinball`."""
    abstained: list[bool] | msgspec.UnsetType = msgspec.UNSET
    """[N]: rows that the model is too unsure of to answer; only with `abstain_below`."""
    quantiles: list[dict[str, float]] | msgspec.UnsetType = msgspec.UNSET
    """[N]: level -> value, such as {"0.25": 3.1, "0.5": 4.0}, never descending; only with `loss: pinball`."""
    warnings: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    """What the answers may suffer from, a line each, rows counted from 1; absent where there is nothing to tell."""


class Problem(msgspec.Struct, frozen=True):
    """Why there is no answer (RFC 9457, application/problem+json)."""

    type: str
    title: str
    status: int
    detail: str
    error: str
    """The detail once more, where clients of other servers look for it."""
    errors: tuple[str, ...]
    """One line for each thing that is wrong."""
    request_id: str


_decoder = msgspec.json.Decoder(TableRequest[Cell])
_numbers_decoder = msgspec.json.Decoder(TableRequest[float | None])
_encode = msgspec.json.Encoder().encode


# ---- tables


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


# ---- images


def image_files(content_type: str, body: bytes) -> list[bytes]:
    """Return the image files in a raw `image/*` body or a multipart form; Refused when there is anything else."""
    try:
        kind, options = multipart.parse_options_header(content_type)
    except (ValueError, LookupError):
        kind, options = "", {}
    if kind == "multipart/form-data":
        return _parts(options.get("boundary", ""), body)
    if not kind.startswith("image/"):
        raise Refused(
            415,
            "bad-content-type",
            f"Content-Type: expected image/* (the file as the body) or multipart/form-data, got '{content_type[:80]}'; "
            "with curl add -H 'Content-Type: image/png'",
        )
    if not body:
        raise Refused(400, "bad-image", "body: expected an image file, got nothing")
    return [body]


_SAY_FILE = f"; with curl write -F {IMAGE_PART}=@PATH: the @ sends the file"


def _parts(boundary: str, body: bytes) -> list[bytes]:
    if not boundary:
        raise Refused(400, "bad-multipart", "Content-Type: expected multipart/form-data with a boundary, got none")
    files: list[bytearray] = []
    try:
        with multipart.PushMultipartParser(boundary, max_segment_count=MAX_IMAGES, strict=True) as parser:
            for event in itertools.chain(parser.parse(body), parser.parse(b"") if not parser.closed else ()):
                if isinstance(event, multipart.MultipartSegment):
                    if event.name != IMAGE_PART or event.filename is None:
                        raise Refused(
                            400,
                            "bad-multipart",
                            f"part {len(files) + 1}: expected a file in a part named '{IMAGE_PART}', got "
                            f"{'a field' if event.filename is None else 'a file'} named {(event.name or '')[:80]!r}"
                            f"{_SAY_FILE if event.filename is None else ''}",
                        )
                    files.append(bytearray())
                elif event:
                    files[-1] += event
    except multipart.ParserLimitReached as error:
        few = f"expected at most {MAX_IMAGES} images in a request, got more; send several requests"
        told = few if len(files) == MAX_IMAGES else "expected short headers of each part, got longer ones"
        raise Refused(413, "too-many-parts", f"multipart: {told}") from error
    except (multipart.MultipartError, ValueError, LookupError) as error:
        told = f"expected form data of image files, got something else: {error}"
        raise Refused(400, "bad-multipart", f"multipart: {told}") from error
    if not files:
        raise Refused(400, "bad-multipart", f"multipart: expected at least one file named '{IMAGE_PART}', got none")
    return [bytes(file) for file in files]


def image_columns(schema: Schema, files: Sequence[bytes]) -> Columns:
    """Return the files as Columns, each with its header checked; Refused naming the images, counted from 1."""
    assert schema.image is not None
    return {schema.image.columns[0]: image_cells(files)}


def image_place(schema: Schema, column: str, row: int) -> str:
    """Return what an image of a request, row counted from 1, is called where something is wrong with it."""
    return f"image {row}" if schema.modality == "image" else f"column '{column}', row {row}"


def image_cells(images: Sequence[bytes | np.ndarray]) -> np.ndarray:
    """Return files or pixels as object[N], each with its header checked; Refused naming the images, counted from 1."""
    from mmjax.data.decode import probe_image

    wrong = []
    for i, image in enumerate(images, 1):
        try:
            probe_image(image, max_pixels=MAX_PIXELS)
        except DataError as error:
            wrong.append(f"image {i}: {error.problems[0].split(': ', 1)[-1]}")
    if wrong:
        raise Refused(400, "bad-image", wrong)
    cells = np.empty(len(images), dtype=object)
    for i, image in enumerate(images):  # one by one: NumPy would stack images of one size
        cells[i] = image
    return cells


# ---- replies


class Words(NamedTuple):
    """Scores as a Reply has them, row by row; see there."""

    predictions: list[int | float | list[int]]
    labels: list[str | list[str]] | None
    probabilities: list[list[float]] | None
    uncertainty: list[float] | msgspec.UnsetType = msgspec.UNSET
    sets: list[list[str]] | msgspec.UnsetType = msgspec.UNSET
    intervals: list[list[float]] | msgspec.UnsetType = msgspec.UNSET
    abstained: list[bool] | msgspec.UnsetType = msgspec.UNSET
    quantiles: list[dict[str, float]] | msgspec.UnsetType = msgspec.UNSET

    def part(self, start: int, stop: int) -> "Words":
        """Return the rows from `start` to before `stop`."""
        rows: list[Any] = [words[start:stop] if isinstance(words, list) else words for words in self]
        return Words(*rows)


def words_of(predictor: Predictor, scores: Scores) -> Words:
    """Return a model's Scores in the words of a reply."""
    schema = predictor.schema
    uncertainty = msgspec.UNSET if scores.uncertainty is None else scores.uncertainty.reshape(-1).tolist()
    if scores.probabilities is None:
        found = to_predictions(predictor, scores)
        intervals = msgspec.UNSET if found.intervals is None else found.intervals.tolist()
        quantiles = msgspec.UNSET if found.quantiles is None else quantiles_by_level(found)
        return Words(found.prediction.tolist(), None, None, uncertainty, intervals=intervals, quantiles=quantiles)
    predictions, classes = scores.prediction.tolist(), schema.target.classes
    labels: list[Any]  # texts, or lists of them
    if schema.target.labels:
        labels = set_texts(classes, scores.prediction)
    else:
        labels = [classes[index] for index in predictions]
    return Words(
        predictions,
        labels,
        scores.probabilities.tolist(),
        uncertainty,
        sets=msgspec.UNSET if scores.sets is None else set_texts(classes, scores.sets),
        abstained=msgspec.UNSET if scores.abstained is None else scores.abstained.tolist(),
    )


def quantiles_by_level(found: Predictions) -> list[dict[str, float]]:
    """Return the quantiles of each row by level, as texts: JSON has no other keys."""
    assert found.quantiles is not None, "a model of quantiles"
    levels = tuple(map(str, found.quantile_levels))
    return [dict(zip(levels, row, strict=True)) for row in found.quantiles.tolist()]


def encode_reply(
    words: Words, model: ModelName, *, seconds: float, request_id: str, warnings: tuple[str, ...] = ()
) -> bytes:
    """Return the Reply as JSON."""
    answers, more = words[:3], words[3:]
    told = warnings or msgspec.UNSET
    return _encode(Reply(*answers, round(1e3 * seconds, 4), model, request_id, *more, told))


def encode_problem(refused: Refused, request_id: str) -> bytes:
    """Return the Problem of a refusal as JSON."""
    detail = "; ".join(refused.problems[:3]) + (
        f" (and {len(refused.problems) - 3} more)" if len(refused.problems) > 3 else ""
    )
    problem = Problem(
        type=f"urn:mmjax:{refused.reason}",
        title=HTTPStatus(refused.status).phrase,
        status=refused.status,
        detail=detail,
        error=detail,
        errors=refused.problems,
        request_id=request_id,
    )
    return _encode(problem)


def encode_json(value: Mapping[str, Any] | Sequence[Any]) -> bytes:
    """Return JSON-ready values as JSON."""
    return _encode(value)
