"""What the Open Inference Protocol calls a model: its inputs and outputs by name, datatype and shape."""

from typing import Any

import msgspec

from mmjax.artifact.predictor import Predictor, added_answers
from mmjax.parts import member_count
from mmjax.schema import Column, Schema
from mmjax.serving.numbers import is_matrix

FEATURES = "features"
"""The one input of a table whose columns are all numeric."""
IMAGE = "image"
"""The one input of a model of one image a row."""

NUMBERS = ("FP32", "FP64", "FP16", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
"""Datatypes that a numeric input may have; every one but the first is cast, values that do not fit are refused."""
PIXELS = "UINT8"
"""Datatype of images that are decoded already, [-1, H, W, 3]; as BYTES they are files."""
CATEGORIES = ("BYTES", "BOOL", *NUMBERS)
"""Datatypes that a categorical or boolean input may have: 1 and 1.0 are one number, and one category."""


class TensorSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """An input or output of a model."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """-1 is any length."""
    parameters: dict[str, Any] = {}
    """`accepts`: the datatypes that an input may have; `classes` and `levels`: what the columns of an output are of."""


def inputs_of(schema: Schema) -> tuple[TensorSpec, ...]:
    """Return the inputs of a model: `features`, or one for each column; an image model has `image`.

    FP64 is told where the schema removes an offset: FP32 would lose digits on the way that the model sees.
    """
    if is_matrix(schema):
        exact = any(column.offset for column in schema.features)
        return (_spec(FEATURES, NUMBERS, (-1, len(schema.features)), exact=exact),)
    images = (TensorSpec(name, "BYTES", (-1,), {"accepts": ("BYTES", PIXELS)}) for name in image_names(schema))
    return (*(_column_spec(column) for column in schema.features), *images)


def image_names(schema: Schema) -> tuple[str, ...]:
    """Return the inputs that are images, in the order of `schema.image.columns`."""
    columns = schema.image.columns if schema.image else ()
    return (IMAGE,) if len(columns) == 1 and not schema.features else columns


def _column_spec(column: Column) -> TensorSpec:
    match column.kind:
        case "numeric":
            return _spec(column.name, NUMBERS, (-1,), exact=bool(column.offset))
        case "datetime":
            return TensorSpec(column.name, "BYTES", (-1,), {"accepts": ("BYTES",)})
        case _:
            return TensorSpec(column.name, "BYTES", (-1,), {"accepts": CATEGORIES})


def _spec(name: str, accepts: tuple[str, ...], shape: tuple[int, ...], *, exact: bool) -> TensorSpec:
    return TensorSpec(name, "FP64" if exact else "FP32", shape, {"accepts": accepts})


def outputs_of(predictor: Predictor) -> tuple[TensorSpec, ...]:
    """Return the outputs of a model: `probabilities`, `predictions` and `labels`; of a regression `predictions`; of a
    model with members `uncertainty` too, and what else it answers. Of several labels each has an answer of its own."""
    target, levels = predictor.schema.target, predictor.quantile_levels
    added = {
        "sets": TensorSpec("sets", "BOOL", (-1, len(target.classes)), {"classes": target.classes}),
        "intervals": TensorSpec("intervals", "FP64", (-1, 2)),
        "abstained": TensorSpec("abstained", "BOOL", (-1,)),
        "quantiles": TensorSpec("quantiles", "FP64", (-1, len(levels)), {"levels": levels}),
    }
    told = (TensorSpec("uncertainty", "FP32", (-1,)),) if member_count(predictor.config) > 1 else ()
    told += tuple(added[field] for field in added_answers(predictor))
    if target.task == "regression":
        return (TensorSpec("predictions", "FP64", (-1,)), *told)
    each = (-1, len(target.classes))
    answer = each if target.labels else (-1,)
    return (
        TensorSpec("probabilities", "FP32", each),
        TensorSpec("predictions", "INT64", answer),
        TensorSpec("labels", "BYTES", answer),
        *told,
    )
