"""A small learner that tests of steps and events share: two classes, three columns, one hidden layer."""

import jax.numpy as jnp
import numpy as np
import optax

from mmjax.config import Architecture, Training
from mmjax.config import Model as ModelConfig
from mmjax.models.base import Model
from mmjax.models.build import build_model
from mmjax.schema import Batch, Column, Schema, Target
from mmjax.training.losses import make_loss
from mmjax.training.outputs import build_output
from mmjax.training.state import TrainState, init_state
from mmjax.training.steps import Learner
from mmjax.transforms.base import identity

SCHEMA = Schema(
    target=Target(column="y", task="classification", classes=("a", "b")),
    columns=tuple(Column(name=name, kind="numeric") for name in "pqr"),
)


def rows(n: int = 64, *, seed: int = 0) -> Batch:
    """Rows whose class is the sign of the first column."""
    numeric = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
    return {"numeric": numeric, "label": (numeric[:, 0] > 0).astype(np.int32)}


def make_model(*, dropout: float = 0.3) -> Model:
    architecture = Architecture(hidden_layers=(8,), dropout=dropout)
    return build_model(ModelConfig(type="tabular", name="mlp", architecture=architecture), SCHEMA, outputs=2)


def make_learner(
    optimizer: optax.GradientTransformation, *, dropout: float = 0.3, ema_decay: float | None = None
) -> Learner:
    training = Training(loss="cross_entropy", label_smoothing=0.0)
    return Learner(
        model=make_model(dropout=dropout),
        transform=identity(),
        augment=None,
        loss=make_loss(training, task="classification", class_weights=None),
        targets=build_output(SCHEMA.target, "cross_entropy").targets,
        optimizer=optimizer,
        ema_decay=ema_decay,
    )


def make_state(learner: Learner, batch: Batch, key, *, member: int = 0) -> TrainState:
    variables = learner.model.init(key, {"numeric": jnp.asarray(batch["numeric"])})
    opt_state = learner.optimizer.init(variables["params"])
    return init_state(variables, opt_state, ema=learner.ema_decay is not None, member=member)
