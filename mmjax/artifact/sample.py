"""Raw rows for a parity check: from golden rows, a CSV or images, in every form in which a client may send them."""

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from mmjax.artifact.bundle import BundleContents
from mmjax.artifact.predictor import golden_columns
from mmjax.config import Config, ImageData, TabularData
from mmjax.data.cells import BOOLEAN_PAIRS, NUMBER, cell_text, missing_texts
from mmjax.data.decode import decode_image, encode_png, probe_image
from mmjax.data.encode import known_columns
from mmjax.data.idx import find_idx
from mmjax.data.image_paths import image_folder, refuse_images, with_paths
from mmjax.data.images import list_images, objects, read_images, read_unlabelled_table, scan_images
from mmjax.data.table import iter_table, refuse_delimiter
from mmjax.data.validate import refuse_cells
from mmjax.errors import BundleError, DataError
from mmjax.schema import Column, Columns, ImageSpec, Schema

EXACT_INTEGER = 2**53
"""Whole numbers below are the same in JSON, JavaScript and f64."""
SHOWN = 20
_BOOLEANS = {word: bool(truth) for pair in BOOLEAN_PAIRS for truth, word in enumerate(pair)}


class Sample(NamedTuple):
    """Raw rows that every way is asked about."""

    what: str
    """In words for the user, the number of rows included."""
    columns: Columns
    """As read: texts of a table; paths, bytes or pixels of images."""
    source: Path | None = None
    """The file or folder that holds these rows and no others; None where there is none."""


def golden_sample(contents: BundleContents) -> Sample:
    """Return the golden rows of a bundle; BundleError when it has none."""
    columns = golden_columns(contents.golden)
    rows = len(next(iter(columns.values()), ()))
    if not rows:
        raise BundleError("golden rows: expected at least one to compare answers on, got none; give --data")
    return Sample(f"{rows:,} golden rows", columns)


def read_sample(config: Config, schema: Schema, data: Path, *, rows: int) -> Sample:
    """Return the first `rows` rows of a CSV, or images of a folder or CSV, as the model's data are read.

    DataError for what cannot be read or encoded.
    """
    if config.data.tabular is not None:
        return _read_table(schema, data, config.data.tabular, rows)
    assert config.data.image is not None, "the config names one modality"
    return _read_images(schema, config.data.image, data, rows)


def _read_table(schema: Schema, data: Path, trained_on: TabularData, rows: int) -> Sample:
    refuse_delimiter(data, trained_on.delimiter, known_columns(schema))
    table = next(iter_table(str(data), delimiter=trained_on.delimiter, chunk_rows=rows + 1), None)
    if table is None:
        raise DataError(f"{data}: expected rows below the header, got none")
    refuse_cells(schema, table)
    columns, there = {name: cells[:rows] for name, cells in table.columns.items()}, len(table.lines)
    if trained_on.images is not None:
        asked = table._replace(columns=columns, lines=table.lines[:rows])
        columns = with_paths(schema, asked, image_folder(trained_on.images, data)).columns
        refuse_images(schema, asked._replace(columns=columns))
    return _sample(data, columns, there, rows)


def _read_images(schema: Schema, trained_on: ImageData, data: Path, rows: int) -> Sample:
    column = _image_column(schema)
    if data.is_dir() and find_idx(str(data)):
        images = read_images(msgspec.structs.replace(trained_on, path=str(data))).columns[column]
    elif data.is_dir() or not data.exists():
        images = objects([str(data / name) for name in list_images(data)[0]])
    else:
        images = read_unlabelled_table(str(data), image_column=column).columns[column]
    if bad := scan_images(images[:rows].tolist()):
        raise DataError([f"{data}: image {index + 1}: {reason}" for index, reason in bad[:SHOWN]])
    return _sample(data, {column: images[:rows]}, len(images), rows)


def _sample(data: Path, columns: Columns, there: int, rows: int) -> Sample:
    if there <= rows:
        return Sample(f"all {there:,} rows of {data}", columns, data)
    return Sample(f"the first {rows:,} rows of {data}", columns)


def write_source(sample: Sample, config: Config, scratch: Path) -> Path:
    """Return a file for the batch door that holds the rows of the sample: its own, or one made in `scratch`."""
    if sample.source is not None:
        return sample.source
    table, columns, delimiter = config.data.tabular, dict(sample.columns), ","
    images = tuple(columns)
    if table is not None:
        delimiter, images = table.delimiter, table.images.columns if table.images else ()
    for number, name in enumerate(name for name in images if name in columns):
        made = scratch / f"images-{number}"
        made.mkdir()
        columns[name] = objects([_file(cell, made / str(i), scratch) for i, cell in enumerate(columns[name])])
    columns = {name: map(cell_text, cells) for name, cells in columns.items()}
    path = scratch / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def _file(cell: Any, path: Path, folder: Path) -> str:
    """Return where in the folder an image is a file, once it is written to `path`; nothing for a missing one."""
    if is_missing(cell):
        return ""
    path.write_bytes(as_bytes(cell))
    return str(path.relative_to(folder))


def row_mappings(columns: Columns) -> Iterator[dict[str, Any]]:
    """Yield the rows as mappings by column name."""
    for cells in zip(*columns.values(), strict=True):
        yield dict(zip(columns, cells, strict=True))


# ---- cells of a table as JSON has them


def typed_rows(schema: Schema, columns: Columns) -> list[dict[str, Any]]:
    """Return the rows as a JSON client types them: numbers as numbers, true and false, null for missing.

    A category that reads as a number, as `7` or `0.5` do and `007` does not, is one. Columns that are no features stay
    as they are.
    """
    gaps = missing_texts(schema.missing_markers)
    known = {column.name: column for column in schema.features}
    return [
        {name: typed_cell(known[name], cell, gaps) if name in known else cell for name, cell in row.items()}
        for row in row_mappings(columns)
    ]


def typed_cell(column: Column, cell: Any, gaps: frozenset[str]) -> Any:
    """Return a cell of a feature column as JSON would have it; what is no text stays as it is."""
    if not isinstance(cell, str):
        return None if cell is None or cell != cell else cell
    text = cell.strip()
    if text in gaps:
        return None
    match column.kind:
        case "numeric" if NUMBER.fullmatch(text):
            return _number(text)
        case "boolean" if text.casefold() in {known.strip().casefold() for known in column.vocabulary}:
            return _BOOLEANS.get(text.casefold(), cell)
        case "categorical" if cell in column.vocabulary and NUMBER.fullmatch(cell):
            number = _number(cell)
            return number if str(number) == cell else cell
        case _:
            return cell


def _number(text: str) -> int | float:
    number = float(text)
    whole = text.removeprefix("-").isdecimal() and abs(number) < EXACT_INTEGER
    return int(text) if whole else number


# ---- images in other forms


def is_missing(cell: Any) -> bool:
    """Return whether a cell holds no image."""
    return cell is None or (isinstance(cell, str) and not cell.strip())


def as_bytes(cell: str | bytes | np.ndarray) -> bytes:
    """Return an image as the bytes of a file; pixels become a PNG."""
    if isinstance(cell, np.ndarray):
        return encode_png(cell)
    return cell if isinstance(cell, bytes) else Path(cell).read_bytes()


def as_path(cell: str | bytes | np.ndarray, path: Path) -> str:
    """Return where an image is a file; what is none yet is written to `path`."""
    if isinstance(cell, str):
        return os.path.abspath(cell)
    path.write_bytes(as_bytes(cell))
    return str(path)


def as_pixels(schema: Schema, cell: str | bytes | np.ndarray) -> np.ndarray:
    """Return an image as u8 pixels of its own size; a JPEG, which may never be decoded whole, as it is resized."""
    spec = schema.image
    assert spec is not None, "a model of images"
    if isinstance(cell, np.ndarray):
        return cell
    info = probe_image(cell)
    own = ImageSpec(height_px=info.height_px, width_px=info.width_px)
    return decode_image(cell, spec if info.format == "JPEG" else own)


def _image_column(schema: Schema) -> str:
    assert schema.image is not None, "a model of images"
    (column,) = schema.image.columns
    return column
