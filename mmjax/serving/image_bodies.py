"""Bodies that are images: a file, or a multipart form of several, becomes Columns once each header was read."""

import itertools
from collections.abc import Sequence

import multipart
import numpy as np

from mmjax.data.encode import in_table
from mmjax.errors import DataError
from mmjax.schema import Columns, Schema
from mmjax.serving.wire import MAX_IMAGES, MAX_PIXELS, Refused

IMAGE_PART = "file"
"""Name of a multipart part that holds an image."""


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
    return f"image {row}" if schema.modality == "image" else in_table(column, row)


def image_cells(images: Sequence[bytes | np.ndarray]) -> np.ndarray:
    """Return files or pixels as object[N], each with its header checked; Refused naming the images, counted from 1."""
    from mmjax.data.decode import probe_image

    wrong = []
    for i, image in enumerate(images, 1):
        try:
            probe_image(image, name=f"image {i}", max_pixels=MAX_PIXELS)
        except DataError as error:
            wrong += error.problems
    if wrong:
        raise Refused(400, "bad-image", wrong)
    cells = np.empty(len(images), dtype=object)
    for i, image in enumerate(images):  # one by one: NumPy would stack images of one size
        cells[i] = image
    return cells
