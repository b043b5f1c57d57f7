"""The three pairs of pure functions that a resolved config and a schema name: training fits them, serving replays."""

from functools import partial
from typing import Any, NamedTuple

from msgspec import UNSET

from mmjax.config import Config, LossName, fold_count
from mmjax.models.base import Model
from mmjax.models.build import build_model
from mmjax.schema import Schema
from mmjax.training.outputs import Output, build_output
from mmjax.training.scoring import Forward, make_ensemble_forward, make_forward
from mmjax.transforms.base import Transform
from mmjax.transforms.build import build_transform, embedded_cardinalities, onehot_widths


class Parts(NamedTuple):
    """Transform, Model and Output of one config; the same in the notebook, the trainer and the server."""

    transform: Transform
    model: Model
    output: Output
    forward: Forward
    member: Forward
    """Of one member alone; `forward` itself where there is one."""
    held_out: Output
    """Of the members that a training row was held from; `output` itself without folds."""
    alone: Output
    """Of one member; `output` itself where there is one."""


class States(NamedTuple):
    """What was fitted, in the order that a Forward takes it."""

    variables: Any
    transform: Any
    output: Any


def build_parts(config: Config, schema: Schema, *, served: bool = False) -> Parts:
    """Return the Parts of a resolved config (no field UNSET that they read); `served` as in `build_model`."""
    transform = build_transform(config, schema)
    name, own, positive = loss_name(config), network_members(config), schema.positive_index
    build = partial(
        build_output,
        schema.target,
        name,
        positive_index=positive,
        quantiles=config.training.quantiles,
        clamp=config.training.clamp is True,
    )
    single = build(members=own)
    assert isinstance(config.precision, str), "the recipe decides the precision"
    tabular = config.data.tabular
    codes = embedded_cardinalities(tabular.preprocessing, schema) if tabular else ()
    onehots = onehot_widths(tabular.preprocessing, schema) if tabular else ()
    model = build_model(
        config.model,
        schema,
        outputs=single.size,
        precision=config.precision,
        cardinalities=codes,
        onehots=onehots,
        freeze=config.training.freeze,
        served=served,
    )
    member = make_forward(model, transform, single)
    if ensemble_size(config) == 1:
        return Parts(transform, model, single, member, member, single, single)
    folded, of_fold = bool(fold_count(config)), config.training.members * own
    whole = build(members=member_count(config), folds=max(fold_count(config), 1))
    held_out = build(members=of_fold) if folded else whole
    forward = make_ensemble_forward(model, transform, whole, folded=folded, images=schema.image is not None)
    return Parts(transform, model, whole, forward, member, held_out, single)


def member_count(config: Config) -> int:
    """Return E, the members of a resolved config's model: its outputs are `f32[B, E, O]` where E > 1."""
    return ensemble_size(config) * network_members(config)


def ensemble_size(config: Config) -> int:
    """Return how many networks answer together. Seeds are trained beside each other, but only the first is kept."""
    return max(fold_count(config), 1) * config.training.members


def network_members(config: Config) -> int:
    """Return how many members one network has."""
    members = config.model.architecture.members
    return 1 if members is UNSET else members


def loss_name(config: Config) -> LossName:
    """Return the loss of a resolved config."""
    loss = config.training.loss
    assert isinstance(loss, str), "the recipe decides the loss"
    return loss
