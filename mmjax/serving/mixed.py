"""Bodies of `POST /predict`: rows by column name, with images as files of a form or as base64 in JSON. No HTTP here."""

import base64
import binascii
import itertools
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import multipart

from mmjax.data.encode import NEEDED_IMAGE, SHOWN, check_columns, with_left_out
from mmjax.data.images import objects
from mmjax.errors import DataError
from mmjax.schema import Columns, Schema
from mmjax.serving.image_bodies import image_place
from mmjax.serving.table_bodies import TableRequest, decode_table, refuse_texts
from mmjax.serving.wire import MAX_IMAGE_BYTES, MAX_IMAGES, MAX_PIXELS, MAX_ROWS, MAX_TABLE_BYTES, Refused

MAX_MIXED_BYTES = MAX_IMAGE_BYTES * 4 // 3 + MAX_TABLE_BYTES
"""Largest body: images in base64 take a third more than their bytes, and cells stand beside them."""
SAY_FILE = "with curl write -F '{name}=@PATH': the @ sends the file"
SAY_BASE64 = "send the bytes of the file in base64 as a text, without a `data:` prefix, or null where it is missing"


FORM = "multipart/form-data"
_FILE = re.compile(rb'"[A-Za-z0-9+/=\\]{64,}+"(?!\s*:)')
"""A text in JSON that may be a file in base64, its slashes perhaps escaped; a name of a column is none."""


def form_of(content_type: str) -> tuple[str, str]:
    """Return (media type, boundary) of a Content-Type; Refused (415) unless it is JSON or a form."""
    try:
        kind, options = multipart.parse_options_header(content_type)
    except (ValueError, LookupError):
        kind, options = "", {}
    if kind not in ("application/json", FORM):
        told = f"expected application/json or {FORM}, got '{content_type[:80]}'; with curl add -F 'COLUMN=VALUE'"
        raise Refused(415, "bad-content-type", f"Content-Type: {told}")
    return kind, options.get("boundary", "")


class Asked(NamedTuple):
    """What a JSON body asks, before it is known of which model."""

    rows: list[dict[str, Any]]
    model: str | None
    version: int | None
    deterministic: bool


def decode_mixed(body: bytes) -> Asked:
    """Return what a JSON body asks; Refused (400) when it is no JSON, has other keys, or rows without names.

    Refused (413) where it is larger than a table may be without its images: millions of small rows take fifty times
    their bytes once decoded.
    """
    if len(body) > MAX_TABLE_BYTES and len(_FILE.sub(b"", body)) > MAX_TABLE_BYTES:
        told = f"body: expected at most {MAX_TABLE_BYTES:,} bytes besides images in base64, got more"
        raise Refused(413, "too-large", told)
    request: TableRequest[Any] = decode_table(body)
    if isinstance(request.rows, msgspec.UnsetType):
        raise Refused(400, "bad-request", "body: expected `rows`, each by column name, got `features`")
    model = None if isinstance(request.model, msgspec.UnsetType) else request.model
    version = None if isinstance(request.version, msgspec.UnsetType) else request.version
    return Asked(request.rows, model, version, request.deterministic is True)


def columns_of_json(schema: Schema, rows: Sequence[Mapping[str, Any]]) -> Columns:
    """Return rows of a JSON body as Columns: cells as JSON has them, images as bytes; Refused naming what is wrong.

    A row may lack the columns that `data.encode.left_out` tells of it.
    """
    _check_rows(schema, len(rows))
    wrong: list[str] = []
    for row, first in {frozenset(row): i for i, row in reversed(list(enumerate(rows, 1)))}.items():
        wrong += _column_problems(schema, tuple(row), f"row {first}")
    if wrong:
        raise Refused(400, "bad-row", sorted(wrong)[:SHOWN])
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    columns = {name: objects([row.get(name) for row in rows]) for name in names}
    refuse_texts(schema, columns)
    unread: set[str] = set()
    for name in _images(schema, names):
        cells: list[bytes | None] = []
        for row, cell in enumerate(columns[name].tolist(), 1):
            try:
                cells.append(_from_base64(cell))
            except DataError as error:
                unread.add(place := image_place(schema, name, row))
                wrong.append(f"{place}: {error}")
                cells.append(None)
        columns[name] = objects(cells)
    return _sound(schema, columns, wrong, unread)


def columns_of_form(schema: Schema, boundary: str, body: bytes) -> Columns:
    """Return the one row of a multipart form as Columns: a field for each cell, a file for each image.

    Fields are texts as in a CSV file; an empty field, or a file of no bytes, is missing. Refused naming what is wrong.
    """
    _check_rows(schema, 1)
    fields, files = _parts(boundary, body, most=len(schema.columns) + MAX_IMAGES + 4)
    names, wrong = (*fields, *files), []
    images = set(schema.image.columns if schema.image else ())
    for name in fields:
        if name in images and fields[name]:
            wrong.append(f"part '{name}': expected a file, got a field; {SAY_FILE.format(name=name)}")
    wrong += [f"part '{name}': expected a field, got a file" for name in files if name not in images]
    wrong = _column_problems(schema, names, "form") or wrong
    if wrong:
        raise Refused(400, "bad-multipart", wrong[:SHOWN])
    cells: dict[str, Any] = {name: _text(name, value, wrong) for name, value in fields.items()}
    cells |= {name: value or None for name, value in files.items()}
    columns = {name: objects([cell or None if name in images else cell]) for name, cell in cells.items()}
    return _sound(schema, columns, wrong)


def _check_rows(schema: Schema, rows: int) -> None:
    most = rows_at_most(schema)
    if not rows:
        raise Refused(400, "no-rows", "expected at least one row, got none")
    if rows > most:
        told = f"expected at most {most:,} rows of this model in a request, got {rows:,}; send several requests"
        raise Refused(413, "too-many-rows", told)


def rows_at_most(schema: Schema) -> int:
    """Return how many rows a request may have: at most MAX_IMAGES images, and one row in any case."""
    return max(1, MAX_IMAGES // len(schema.image.columns)) if schema.image else MAX_ROWS


def _column_problems(schema: Schema, names: Sequence[str], where: str) -> list[str]:
    try:
        check_columns(schema, names, where=where)
    except DataError as error:
        return list(error.problems)
    return []


def _images(schema: Schema, names: Sequence[str]) -> list[str]:
    return [name for name in (schema.image.columns if schema.image else ()) if name in names]


def _from_base64(cell: Any) -> bytes | None:
    if cell is None or cell == "":
        return None
    try:
        if isinstance(cell, str):
            return base64.b64decode(cell, validate=True)
        told = f"a {type(cell).__name__}"
    except (binascii.Error, ValueError):
        told = "a text that is none"
    raise DataError(f"expected an image in base64, got {told}; {SAY_BASE64}")


def _text(name: str, value: bytes, wrong: list[str]) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        wrong.append(f"part '{name}': expected text in UTF-8, got other bytes")
        return ""


def _sound(schema: Schema, columns: Columns, wrong: list[str], unread: Container[str] = ()) -> Columns:
    """Return the columns, those left out as missing, once the header of every image was read; Refused otherwise.

    What is wrong with the images that are `unread` is told already.
    """
    from mmjax.data.decode import probe_image

    for name in _images(schema, tuple(columns)):
        for row, cell in enumerate(columns[name], 1):
            place = image_place(schema, name, row)
            if cell is None:
                if schema.modality == "image" and place not in unread:
                    wrong.append(f"{place}: expected {NEEDED_IMAGE}, got none; send one, or leave the row out")
                continue
            try:
                probe_image(cell, name=place, max_pixels=MAX_PIXELS)
            except DataError as error:
                wrong += error.problems
    if wrong:
        raise Refused(400, "bad-image", wrong[:SHOWN])
    return with_left_out(schema, columns)


def _parts(boundary: str, body: bytes, *, most: int) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Return the fields and the files of a form, by name; Refused where it is none, or has a name twice."""
    if not boundary:
        raise Refused(400, "bad-multipart", "Content-Type: expected multipart/form-data with a boundary, got none")
    found: dict[str, tuple[bool, bytearray]] = {}
    at = bytearray()
    try:
        with multipart.PushMultipartParser(boundary, max_segment_count=most, strict=True) as parser:
            for event in itertools.chain(parser.parse(body), parser.parse(b"") if not parser.closed else ()):
                if isinstance(event, multipart.MultipartSegment):
                    name = event.name or ""
                    if name in found:
                        raise Refused(400, "bad-multipart", f"part '{name[:80]}': expected it once, got it twice")
                    at = bytearray()
                    found[name] = (event.filename is not None, at)
                elif event:
                    at += event
    except multipart.ParserLimitReached as error:
        told = f"multipart: expected at most {most:,} parts with short headers, got more"
        raise Refused(413, "too-many-parts", told) from error
    except (multipart.MultipartError, ValueError, LookupError) as error:
        raise Refused(400, "bad-multipart", f"multipart: expected form data, got something else: {error}") from error
    if not found:
        raise Refused(400, "bad-multipart", "multipart: expected a part for each column, got none")
    fields = {name: bytes(value) for name, (is_file, value) in found.items() if not is_file}
    return fields, {name: bytes(value) for name, (is_file, value) in found.items() if is_file}
