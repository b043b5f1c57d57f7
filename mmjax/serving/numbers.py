"""A matrix of numbers becomes a Batch at once: what `encode` makes of the same columns, without its work by column."""

import numpy as np

from mmjax.data.cells import LARGEST, marker_numbers, parse_numbers
from mmjax.data.encode import encode
from mmjax.schema import Batch, Schema


def is_matrix(schema: Schema) -> bool:
    """Return whether a row is nothing but numbers: all feature columns are numeric, and there is no image."""
    return schema.image is None and all(column.kind == "numeric" for column in schema.features)


def numeric_batch(schema: Schema, values: np.ndarray) -> Batch:
    """Return what `encode` makes of the columns of a matrix [N, F] of integers or floats, N > 0; NaN is missing.

    The columns are the features of a schema that `is_matrix`, in order. DataError naming column and row of cells that
    f32 cannot hold. Of an f32 matrix that needs nothing done, the result is the matrix.
    """
    offsets = schema.feature_offsets
    if offsets is None and not marker_numbers(schema.missing_markers):
        numbers = values if values.dtype == np.float32 else values.astype(np.float64, copy=False)
        bad = np.isinf(numbers) if numbers.dtype == np.float32 else np.abs(numbers) > LARGEST
    else:
        numbers, bad = parse_numbers(values.reshape(-1), schema.missing_markers)
        numbers = numbers.reshape(values.shape) - (0.0 if offsets is None else offsets)
    if bad.any():
        encode(schema, {column.name: values[:, i] for i, column in enumerate(schema.features)})  # raises with words
    return {"numeric": np.require(numbers, np.float32, ["C", "A"])}
