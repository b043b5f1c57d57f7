"""What a client sends: rows and images as the bodies of requests, in parts that the limits of a server allow."""

import base64
import json
import math
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import numpy as np

from mmjax.errors import DataError
from mmjax.frames import ONE_ROW, Frame, ImageFile, sized_cells

MOST_ROWS = 4096
MOST_IMAGES = 16
MOST_IMAGE_BYTES = 16 * 2**20 - 2**16
"""Of a server's limits for one request; room is left for the parts' headers."""
TABLE_BYTES = 4 * 2**20
"""Tables are halved until a part is no larger: half of a server's limit."""
SHOWN = 20
MOST_BITS = 1024
"""Of a whole number: no float holds a longer one, and Python refuses to write those of thousands of digits."""

Rows = (
    Sequence[Mapping[str, Any]]
    | Mapping[str, Sequence[Any] | np.ndarray]
    | Sequence[Sequence[Any]]
    | np.ndarray
    | Frame
    | ImageFile
    | Sequence[ImageFile]
)


PIXELS = (
    "; a server takes files, not pixels: give the file's path, or its bytes, as of `buffer = io.BytesIO(); "
    "PIL.Image.fromarray(pixels).save(buffer, 'PNG'); buffer.getvalue()`"
)


class Request(NamedTuple):
    """The body of a POST, and where it goes."""

    path: str
    body: bytes
    headers: dict[str, str]
    rows: int
    """How many answers it asks for."""


def as_images(rows: Rows) -> list[ImageFile] | None:
    """Return the images that are meant; None when it is a table. DataError for a list of both, or of nothing."""
    if isinstance(rows, str | Path | bytes):
        return [rows]
    if not isinstance(rows, Sequence | Mapping):
        return None
    if isinstance(rows, Mapping) and len(rows) == 1:
        (cells,) = rows.values()
    elif isinstance(rows, Sequence) and rows and all(isinstance(row, Mapping) and len(row) == 1 for row in rows):
        cells = [cell for row in rows for cell in row.values()]  # pyright: ignore[reportAttributeAccessIssue]
    else:
        cells = rows
    if isinstance(cells, Mapping | np.ndarray) or not hasattr(cells, "__len__"):
        return None
    sources: tuple[type, ...] = (str, Path, bytes) if cells is rows else (Path, bytes)  # a text may be a category
    images = [cell for cell in cells if isinstance(cell, sources)]
    if images and len(images) != len(cells):
        raise DataError(
            f"rows: expected paths and bytes of images only, got {len(cells) - len(images)} of another kind"
        )
    return images or None


def image_requests(images: Sequence[ImageFile], model: str | None, version: int | None) -> Iterator[Request]:
    """Yield the requests for images; DataError for a file that cannot be read."""
    asked = {key: value for key, value in (("model", model), ("version", version)) if value is not None}
    path = f"/predict/image?{urlencode(asked, quote_via=quote)}" if asked else "/predict/image"
    part, size = [], 0
    for image in images:
        content = image if isinstance(image, bytes) else _read(Path(image))
        if part and (len(part) == MOST_IMAGES or size + len(content) > MOST_IMAGE_BYTES):
            yield _image_request(path, part)
            part, size = [], 0
        part.append(content)
        size += len(content)
    yield _image_request(path, part)


def image_names(images: Sequence[ImageFile], first: int, problem: str) -> str:
    """Return a server's line about one of the images with its path, or its place among all, in front.

    `first` is the place of the request's first image among all; both count from 1.

    >>> image_names(["a.png", "b.png"], 2, "image 1: is empty"), image_names([b""], 1, "image 1: is empty")
    ('b.png: is empty', 'image 1: is empty')
    """
    found = re.match(r"(?:image|column '.*?', row) (\d+): ", problem)
    place = first + int(found[1]) - 1 if found else 0
    if found is None or place > len(images):
        return problem
    image = images[place - 1]
    return f"{f'image {place}' if isinstance(image, bytes) else image}: {problem[found.end() :]}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        told = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path}: expected an image file, got: {told}") from error


def _image_request(path: str, files: Sequence[bytes]) -> Request:
    if len(files) == 1:
        return Request(path, files[0], {"Content-Type": "image/*"}, 1)
    line = uuid.uuid4().hex
    head = f'--{line}\r\nContent-Disposition: form-data; name="file"; filename="image"\r\n\r\n'.encode()
    body = b"".join(head + file + b"\r\n" for file in files) + f"--{line}--\r\n".encode()
    return Request(path, body, {"Content-Type": f"multipart/form-data; boundary={line}"}, len(files))


def has_images(rows: Any) -> bool:
    """Return whether any cell of rows by name is a path or the bytes of an image."""
    if not by_name(rows):
        return False
    groups = rows.values() if isinstance(rows, Mapping) else (row.values() for row in rows)
    sized = (group for group in groups if not isinstance(group, np.ndarray) or group.dtype == object)
    return any(isinstance(cell, Path | bytes) for group in sized if hasattr(group, "__iter__") for cell in group)


def by_name(rows: Any) -> bool:
    """Return whether rows are given by column name: as dicts, or as a dict of columns."""
    return isinstance(rows, Mapping) or (
        isinstance(rows, Sequence) and bool(rows) and all(isinstance(row, Mapping) for row in rows)
    )


def named_images(rows: Any, description: Mapping[str, Any]) -> list[ImageFile] | None:
    """Return the images of rows by name for a model of images alone; None where its column is not all that is named,
    or a cell is no image, which the server tells best."""
    (name,) = description["schema"]["image"]["columns"]
    if isinstance(rows, Mapping):
        cells = list(rows[name]) if set(rows) == {name} and not isinstance(rows[name], str | bytes | Path) else []
    else:
        cells = [row.get(name) if set(row) == {name} else None for row in rows]
    images = [cell for cell in cells if isinstance(cell, ImageFile) and cell != ""]
    return images if images and len(images) == len(cells) else None


def refuse_none(rows: Any) -> None:
    """Raise DataError where there are no rows: the server would not say so of every model."""
    groups = list(rows.values()) if isinstance(rows, Mapping) else [rows]
    sized = (isinstance(group, Sequence | np.ndarray) and not isinstance(group, str | bytes) for group in groups)
    if all(sized) and not any(len(group) for group in groups):
        raise DataError("rows: expected at least one row, got none")


def mixed_requests(
    rows: Rows, model: str | None, version: int | None, description: Mapping[str, Any] | None
) -> Iterator[Request]:
    """Yield the requests for rows by name with images (paths or bytes; None is missing) beside cells.

    A text in a column of images is a path. Where nothing is known of the model, columns with a Path or bytes are those
    of images. DataError for a file that cannot be read, for rows without names, and for columns of several lengths.
    """
    asked = {key: value for key, value in (("model", model), ("version", version)) if value is not None}
    if isinstance(rows, Mapping):
        _expect_equal({str(name): sized_cells(f"column '{name}'", cells) for name, cells in rows.items()})
        rows = [dict(zip(rows, cells, strict=True)) for cells in zip(*rows.values(), strict=True)]
    if not isinstance(rows, Sequence) or not by_name(rows):
        raise DataError("rows: expected dicts, or a dict of lists, by column name, got something else")
    named: list[Mapping[str, Any]] = [row for row in rows if isinstance(row, Mapping)]
    if description is None:
        images = tuple({str(n): 0 for row in named for n, cell in row.items() if isinstance(cell, Path | bytes)})
    else:
        images = tuple((description["schema"]["image"] or {"columns": ()})["columns"])
    part: list[dict[str, Any]] = []
    size, most = 0, max(1, MOST_IMAGES // max(1, len(images)))
    for number, row in enumerate(named, 1):
        made = {str(name): _mixed_cell(number, str(name), cell, images) for name, cell in row.items()}
        took = sum(len(made[name]) for name in images if made.get(name))
        if part and (len(part) == most or size + took > MOST_IMAGE_BYTES * 4 // 3):
            yield _mixed_request(part, asked)
            part, size = [], 0
        part.append(made)
        size += took
    yield _mixed_request(part, asked)


def _mixed_cell(row: int, name: str, cell: Any, images: Sequence[str]) -> Any:
    """Return a cell for JSON; of an image its file in base64."""
    if name not in images:
        return _cell(f"row {row}, '{name}'", cell)
    if cell is None or (isinstance(cell, str | float) and (cell == "" or cell != cell)):
        return None
    if not isinstance(cell, str | Path | bytes):
        told = f"expected a path or the bytes of an image, got {type(cell).__name__}"
        raise DataError(f"row {row}, '{name}': {told}{PIXELS if isinstance(cell, np.ndarray) else ''}")
    return base64.b64encode(cell if isinstance(cell, bytes) else _read(Path(cell))).decode()


def _mixed_request(rows: list[dict[str, Any]], asked: Mapping[str, Any]) -> Request:
    return Request("/predict", _json({**asked, "rows": rows}), {"Content-Type": "application/json"}, len(rows))


def table_requests(
    rows: Rows, model: str | None, version: int | None, description: Mapping[str, Any] | None
) -> Iterator[Request]:
    """Yield the requests for rows of a table; DataError for cells that JSON has no word for.

    With what is known of the model, columns go as cells in its order; else the server is given the names, and says
    which are wrong.
    """
    asked = {key: value for key, value in (("model", model), ("version", version)) if value is not None}
    key, cells = _table(rows, description)
    yield from _table_parts(key, cells, asked)


def _table(rows: Rows, description: Mapping[str, Any] | None) -> tuple[str, list[Any]]:
    """Return `features` or `rows`, and the cells."""
    if isinstance(rows, np.ndarray):
        if rows.ndim != 2:
            told = f"expected an array of rows and columns, got one of shape {rows.shape}"
            raise DataError(f"rows: {told}{ONE_ROW if rows.ndim == 1 else PIXELS}")
        return "features", _from_columns([_cells(f"column {i + 1}", rows[:, i]) for i in range(rows.shape[1])])
    if isinstance(rows, Mapping):
        return _from_mapping(
            {str(name): _cells(f"column '{name}'", cells) for name, cells in rows.items()}, description
        )
    if not isinstance(rows, Sequence):
        raise DataError(
            "rows: expected dicts, lists, columns, an array, a pandas DataFrame, or paths or bytes of images, got "
            f"{type(rows).__name__}"
        )
    named = [row for row in rows if isinstance(row, Mapping)]
    if len(named) == len(rows):
        return "rows", [
            {str(name): _cell(f"row {i}, '{name}'", cell) for name, cell in row.items()}
            for i, row in enumerate(named, 1)
        ]
    return "features", [_cells(f"row {i}", row) for i, row in enumerate(rows, 1)]


def _from_mapping(columns: dict[str, list[Any]], description: Mapping[str, Any] | None) -> tuple[str, list[Any]]:
    _expect_equal(columns)
    if description is not None:
        features, target = description["features"], description["target"]
        known = {column["name"] for column in description["schema"]["columns"]} | {target}
        if set(features) <= set(columns) <= known:
            return "features", _from_columns([columns[name] for name in features])
    return "rows", [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _expect_equal(columns: Mapping[str, Any]) -> None:
    lengths = {name: len(cells) for name, cells in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"rows: expected columns of equal length, got {lengths}")


def _from_columns(columns: Sequence[list[Any]]) -> list[Any]:
    return list(zip(*columns, strict=True))


def _table_parts(key: str, rows: list[Any], asked: Mapping[str, Any]) -> Iterator[Request]:
    body = _json({**asked, key: rows}) if len(rows) <= MOST_ROWS else b""
    if len(rows) > MOST_ROWS or (len(body) > TABLE_BYTES and len(rows) > 1):
        half = min(MOST_ROWS, len(rows) // 2 + len(rows) % 2)
        yield from _table_parts(key, rows[:half], asked)
        yield from _table_parts(key, rows[half:], asked)
        return
    yield Request("/predict/tabular", body, {"Content-Type": "application/json"}, len(rows))


def _json(document: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        got = ascii(error.object[error.start : error.end])
        raise DataError(f"rows: expected texts that UTF-8 has bytes for, got one with {got}") from error


def _cells(where: str, cells: Any) -> list[Any]:
    """Return a column as cells for JSON."""
    if isinstance(cells, np.ndarray) and cells.ndim > 1:
        raise DataError(f"{where}: expected cells, got an array of shape {cells.shape}{PIXELS}")
    if isinstance(cells, np.ndarray) and cells.dtype.kind in "biuf":
        values = cells.astype(np.float64) if cells.dtype.kind == "f" else cells
        if cells.dtype.kind == "f" and np.isinf(values).any():
            raise infinite(f"{where}, cell {int(np.flatnonzero(np.isinf(values))[0]) + 1}")
        return [None if value != value else value for value in values.tolist()]
    return [_cell(f"{where}, cell {i}", cell) for i, cell in enumerate(sized_cells(where, cells), 1)]


def _cell(where: str, value: Any) -> Any:
    """Return a cell as JSON has it: NaN is missing, a date its ISO text."""
    if isinstance(value, np.generic):
        value = str(value) if value.dtype.kind == "M" else value.item()
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise DataError(f"{where}: expected a number within ±3.4e38, got one of {value.bit_length():,} bits")
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if math.isinf(value):
            raise infinite(where)
        return None if math.isnan(value) else value
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, np.ndarray):
        raise DataError(f"{where}: expected a cell or an image file, got an array of shape {value.shape}{PIXELS}")
    raise DataError(f"{where}: expected a number, a text, a boolean, a date or None, got {type(value).__name__}")


def infinite(where: str) -> DataError:
    """Return the error of a cell that is infinite."""
    return DataError(f"{where}: expected a finite number, or NaN or None for missing, got infinity")
