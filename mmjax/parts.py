"""The three pairs of pure functions that a resolved config and a schema name: training fits them, serving replays."""

from typing import Any, NamedTuple

from mmjax.config import Config, LossName
from mmjax.models.base import Model
from mmjax.models.build import build_model
from mmjax.schema import Schema
from mmjax.training.outputs import Output, build_output
from mmjax.training.scoring import Forward, make_forward
from mmjax.transforms.base import Transform
from mmjax.transforms.build import build_transform, embedded_cardinalities


class Parts(NamedTuple):
    """Transform, Model and Output of one config; the same in the notebook, the trainer and the server."""

    transform: Transform
    model: Model
    output: Output
    forward: Forward


class States(NamedTuple):
    """What was fitted, in the order that a Forward takes it."""

    variables: Any
    transform: Any
    output: Any


def build_parts(config: Config, schema: Schema) -> Parts:
    """Return the Parts of a resolved config (no field UNSET that they read)."""
    transform = build_transform(config, schema)
    output = build_output(schema.target, loss_name(config), positive_index=schema.positive_index)
    assert isinstance(config.precision, str), "the recipe decides the precision"
    tabular = config.data.tabular
    codes = embedded_cardinalities(tabular.preprocessing, schema) if tabular else ()
    model = build_model(config.model, schema, outputs=output.size, precision=config.precision, cardinalities=codes)
    return Parts(transform, model, output, make_forward(model, transform, output))


def loss_name(config: Config) -> LossName:
    """Return the loss of a resolved config."""
    loss = config.training.loss
    assert isinstance(loss, str), "the recipe decides the loss"
    return loss
