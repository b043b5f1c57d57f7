"""Inputs of a request become what the encoder takes: a matrix of numbers, or Columns. What is wrong is told at once."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from mmjax.data.encode import left_out, with_left_out
from mmjax.data.images import objects
from mmjax.errors import did_you_mean
from mmjax.schema import Columns, Schema
from mmjax.serving.image_bodies import image_cells
from mmjax.serving.mixed import rows_at_most
from mmjax.serving.open_inference_model import PIXELS, TensorSpec, image_names, inputs_of
from mmjax.serving.open_inference_tensors import Tensor
from mmjax.serving.wire import MAX_ROWS, Refused

SHOWN = 20
"""How many problems are listed."""


def matrix_of(schema: Schema, inputs: Sequence[Tensor]) -> np.ndarray:
    """Return the numbers [N, F] of a request to a model that `is_matrix`; Refused naming the inputs that are wrong."""
    (spec,) = _checked(schema, inputs)
    values = inputs[0].values
    if values.ndim != 2 or values.shape[1] != spec.shape[1]:
        names = ", ".join(column.name for column in schema.features[:SHOWN])
        told = f"expected {list(spec.shape)} ({names}), got {list(values.shape)}"
        raise Refused(400, "bad-tensor", f"input '{spec.name}', shape: {told}")
    _check_rows(inputs, MAX_ROWS)
    return values


def columns_of(schema: Schema, inputs: Sequence[Tensor]) -> Columns:
    """Return the inputs as Columns of the schema; Refused naming those that are wrong, and images that are none."""
    _checked(schema, inputs)
    images = image_names(schema)
    wrong = [line for tensor in inputs if (line := _wrong_shape(tensor, is_image=tensor.name in images))]
    if wrong:
        raise Refused(400, "bad-tensor", wrong[:SHOWN])
    _check_rows(inputs, rows_at_most(schema))
    by_name = {tensor.name: tensor for tensor in inputs}
    features = (column.name for column in schema.features if column.name in by_name)
    columns = {name: _cells(by_name[name]) for name in features}
    for name, column in zip(images, schema.image.columns if schema.image else (), strict=True):
        if name in by_name:
            columns[column] = _images(by_name[name], may_be_missing=schema.modality == "multimodal")
    return with_left_out(schema, columns)


def _checked(schema: Schema, inputs: Sequence[Tensor]) -> tuple[TensorSpec, ...]:
    """Return the specs of all inputs; Refused unless there is exactly one tensor for each, of a datatype it takes."""
    specs = {spec.name: spec for spec in inputs_of(schema)}
    given = Counter(tensor.name for tensor in inputs)
    left = left_out(schema, given)
    wrong = [f"input '{name}': expected one, got none" for name in specs if name not in given and name not in left]
    for tensor in inputs[: SHOWN + len(specs)]:
        name = tensor.name[:100]
        if tensor.name not in specs:
            wrong.append(f"input '{name}': unknown{did_you_mean(name, specs) or '; remove it'}")
        elif given[tensor.name] > 1:
            wrong.append(f"input '{name}': expected one, got {given[tensor.name]}")
        elif tensor.datatype not in (takes := specs[tensor.name].parameters["accepts"]):
            wrong.append(f"input '{name}', datatype: expected {' or '.join(takes)}, got {tensor.datatype}")
    if wrong:
        raise Refused(400, "bad-tensor", list(dict.fromkeys(wrong))[:SHOWN])
    return tuple(specs.values())


def _wrong_shape(tensor: Tensor, *, is_image: bool) -> str | None:
    shape = tensor.values.shape
    if is_image and tensor.datatype == PIXELS:
        sound = len(shape) == 4 and shape[1] > 0 and shape[2] > 0 and shape[3] == 3
        expected = "[-1, H, W, 3] with pixels"
    else:
        sound, expected = shape[1:] in ((), (1,)), "[-1] or [-1, 1]"
    return None if sound else f"input '{tensor.name}', shape: expected {expected}, got {list(shape)}"


def _check_rows(inputs: Sequence[Tensor], most: int) -> None:
    """Refuse inputs of different length, of none, or of too many rows."""
    lengths = {tensor.name: len(tensor.values) for tensor in inputs}
    rows = min(lengths.values())
    if rows != max(lengths.values()):
        told = ", ".join(f"'{name}' {length:,}" for name, length in list(lengths.items())[:SHOWN])
        raise Refused(400, "bad-tensor", f"inputs: expected as many rows in each, got {told}")
    if not rows:
        raise Refused(400, "no-rows", "inputs: expected at least one row, got none")
    if rows > most:
        raise Refused(413, "too-many-rows", f"inputs: expected at most {most:,} rows in a request, got {rows:,}")


def _cells(tensor: Tensor) -> np.ndarray:
    """Return the cells of a column [N]: numbers as they are, booleans as Python's, BYTES as texts (null is None)."""
    values = tensor.values.reshape(-1)
    if tensor.datatype == "BOOL":
        return values.astype(object)
    if tensor.datatype != "BYTES":
        return values
    cells = np.empty(len(values), dtype=object)
    for i, value in enumerate(values.tolist()):
        try:
            cells[i] = value.decode() if isinstance(value, bytes) else value
        except UnicodeDecodeError as error:
            told = "expected text in UTF-8, got other bytes"
            raise Refused(400, "bad-cell", f"input '{tensor.name}', element {i + 1}: {told}") from error
    return cells


def _images(tensor: Tensor, *, may_be_missing: bool) -> np.ndarray:
    """Return the images as object[N] of files or pixels u8[H, W, 3]; Refused for a file that is no image.

    An element without bytes, or null, is a missing image (None) where that may be.
    """
    if tensor.datatype == PIXELS:
        cells = np.empty(len(tensor.values), dtype=object)
        for i, image in enumerate(tensor.values):
            cells[i] = image
        return cells
    files = tensor.values.reshape(-1).tolist()
    cells = objects([(file or None) if may_be_missing else file for file in files])
    rows = np.array([row for row, cell in enumerate(cells) if cell is not None or not may_be_missing], np.int64)
    files = cells[rows].tolist()
    if not all(isinstance(file, bytes) for file in files):
        told = "expected image files as binary data, or pixels as UINT8, got JSON texts"
        raise Refused(400, "bad-tensor", f"input '{tensor.name}': {told}")
    if not may_be_missing:
        return image_cells(files)
    try:
        cells[rows] = image_cells(files)
    except Refused as refused:

        def place(found: re.Match[str]) -> str:
            return f"input '{tensor.name}', row {rows[int(found[1]) - 1] + 1}"

        told = [re.sub(r"^image (\d+)", place, problem) for problem in refused.problems]
        raise Refused(refused.status, refused.reason, told) from refused
    return cells
