"""From a resolved config and prepared rows to what `train_events` needs: the learner, fitted states, who measures."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.backend import compiled, platform
from mmjax.config import Config, Training
from mmjax.data.pipeline import Picked, batch_rows, take
from mmjax.data.prepare import Prepared
from mmjax.errors import ConfigError, DataError
from mmjax.models.build import count_parameters
from mmjax.parts import Parts, States
from mmjax.schema import Batch
from mmjax.training.decide import decision_problems
from mmjax.training.events import Measure, Plan, Task
from mmjax.training.losses import Loss, class_weight_array, make_loss
from mmjax.training.metrics import metric_names
from mmjax.training.optimizer import make_optimizer, make_schedule
from mmjax.training.outputs import Output
from mmjax.training.scoring import LABEL_FIELDS, Forward, Scores, bucket_of, inputs_of, metrics_of, score
from mmjax.training.state import TrainState, init_state
from mmjax.training.steps import Learner
from mmjax.transforms.augment import build_augment

TABLE_ROWS = 4096
"""Rows of one forward pass when a table is scored."""
IMAGE_ROWS = 256
"""The same for images: their activations are large."""


class Scorer(NamedTuple):
    """Scores whole splits with one compiled shape."""

    prepared: Prepared
    forward: Forward
    loss: Callable[[np.ndarray, Batch], float]
    rows: int
    """Rows of every forward pass."""

    def scores(self, states: tuple[Any, Any, Any], split: str) -> tuple[Scores, Batch]:
        """Return the Scores of a split and its labels and weights; `split` is `train`, `validation` or `test`."""
        batch, rows = self.prepared.batch, getattr(self.prepared.split, split)
        answers = take({name: values for name, values in batch.items() if name in LABEL_FIELDS}, rows)
        return score(self.forward, states, batch, rows, largest=self.rows, smallest=self.rows), answers

    def metrics(self, states: tuple[Any, Any, Any], split: str) -> dict[str, float]:
        """Return `loss` and every metric of a split; an empty dict when it has no rows."""
        if not len(getattr(self.prepared.split, split)):
            return {}
        scores, batch = self.scores(states, split)
        return {"loss": self.loss(scores.outputs, batch)} | metrics_of(self.prepared.schema, scores, batch)


INIT_ROWS = 1024
"""Training rows of a table, drawn at random, that initial weights may be fitted to."""


class Setup(NamedTuple):
    """Everything `train_events` needs, and the states that the bundle will hold."""

    state: TrainState
    task: Task
    plan: Plan
    fitted: tuple[Any, Any]
    """Transform and output states."""
    scorer: Scorer
    output: Output
    """For when training is done: its state is added to by `training.decide`."""


def set_up(config: Config, prepared: Prepared, parts: Parts) -> Setup:
    """Return the Setup of a resolved config: fits the Transform and Output on training rows, makes initial weights.

    ConfigError, all problems at once, for what only the data can tell: a `monitor` that is no metric of this target, a
    run that ends before its first update. DataError for training rows that all weigh nothing.
    """
    _refuse_useless(config, prepared)
    train = _training_rows(prepared)
    transform_state = jax.tree.map(jnp.asarray, parts.transform.fit(inputs_of(train)))
    output_state = jax.tree.map(jnp.asarray, parts.output.fit(train["label"]))
    fitted = (transform_state, output_state)
    plan = make_plan(config)
    steps = _updates(config, batch_rows(train))
    variables = _init_variables(parts, transform_state, train, config.seed)
    rates = parts.model.rates(variables["params"]) if parts.model.rates else None
    optimizer = make_optimizer(config.training, total_steps=steps[-1], params=variables["params"], rates=rates)
    loss = _loss(config, prepared, train)
    learner = Learner(
        model=parts.model,
        transform=parts.transform,
        augment=build_augment(config.data.image.augmentation) if config.data.image else None,
        loss=loss,
        targets=parts.output.targets,
        optimizer=optimizer,
        ema_decay=config.training.ema_decay,
        accumulate_steps=config.training.accumulate_steps,
        total_steps=_epochs(config.training) * _batches(config.training, batch_rows(train)),
    )
    state = init_state(
        variables, compiled(optimizer.init)(variables["params"]), ema=config.training.ema_decay is not None
    )
    scorer = _scorer(prepared, parts, loss, output_state, plan.precision)
    schedule = make_schedule(config.training, total_steps=steps[-1])
    task = Task(
        learner=learner,
        data=prepared.batch,
        rows=prepared.split.train,
        streamed=prepared.streamed,
        fitted=fitted,
        measure=_measure(scorer, fitted, plan.monitor),
        learning_rates=np.asarray(compiled(jax.vmap(lambda count: jnp.float32(schedule(count))))(steps - 1)),
        parameters=count_parameters(variables),
        validation_rows=len(prepared.split.validation),
    )
    return Setup(state, task, plan, fitted, scorer, parts.output)


def _training_rows(prepared: Prepared) -> Batch:
    """Return the training rows; of a streamed data set the images stay on disk."""
    batch, rows = prepared.batch, prepared.split.train
    images = {"image": Picked(batch["image"], rows)} if prepared.streamed and "image" in batch else {}
    return take({name: values for name, values in batch.items() if name not in images}, rows) | images


def make_plan(config: Config) -> Plan:
    """Return how long and by what to train. Convolutions stay out of loops on CPU: XLA lays them out badly there."""
    monitor = config.training.early_stopping.monitor
    return Plan(
        name=config.name,
        seed=config.seed,
        training=config.training,
        loop=config.data.image is None or platform() != "cpu",
        monitor=monitor if isinstance(monitor, str) else "",
        precision=str(config.precision),
    )


def _refuse_useless(config: Config, prepared: Prepared) -> None:
    """Raise ConfigError or DataError where training would measure nothing or change nothing."""
    training = config.training
    where, _, metric = make_plan(config).monitor.partition("_")
    known = metric_names(len(prepared.schema.target.classes))
    problems = []
    if where and metric not in known:
        told = f"expected {where}_X with X one of {', '.join(known)} for this target, got {where}_{metric}"
        problems.append(f"training.early_stopping.monitor: {told}")
    if where == "val" and not len(prepared.split.validation):
        problems.append("training.early_stopping.monitor: expected train_X, as there are no validation rows")
    if training.calibration == "temperature" and not ("ece" in known and len(prepared.split.validation)):
        problems.append(
            "training.calibration: temperature expected a classification target and validation rows, got "
            f"{prepared.schema.target.task} and {len(prepared.split.validation)} rows; remove it, or set it to none"
        )
    problems += decision_problems(training, prepared.schema, prepared.batch["label"][prepared.split.validation])
    batches = _batches(training, len(prepared.split.train)) * _epochs(training)
    if training.accumulate_steps > batches:
        told = f"expected at most {batches}, the batches of the whole run, got {training.accumulate_steps}"
        problems.append(f"training.accumulate_steps: {told}; no update would be made")
    if problems:
        raise ConfigError(problems)
    if "weight" in prepared.batch and not prepared.batch["weight"][prepared.split.train].any():
        raise DataError("weight_column: expected a weight above 0 among the training rows, got only zeros")


def _updates(config: Config, rows: int) -> np.ndarray:
    """Return the number of optimizer updates done at the end of each epoch, i32[epochs]."""
    training = config.training
    batches = np.arange(1, _epochs(training) + 1) * _batches(training, rows)
    return np.maximum(1, batches // training.accumulate_steps).astype(np.int32)


def _epochs(training: Training) -> int:
    assert isinstance(training.epochs, int), "the recipe decides the epochs"
    return training.epochs


def _batches(training: Training, rows: int) -> int:
    """Return the batches of one epoch."""
    assert isinstance(training.batch_size, int), "the recipe decides the batch size"
    return rows // training.batch_size


def _init_variables(parts: Parts, transform_state: Any, train: Batch, seed: int) -> dict[str, Any]:
    count = batch_rows(train)
    chosen = np.random.default_rng(seed).permutation(count)[:INIT_ROWS]
    sample = inputs_of(take(train, slice(0, 2) if "image" in train else np.sort(chosen)))

    def init(key: jax.Array, batch: Batch) -> dict[str, Any]:
        return parts.model.init(key, parts.transform.apply(transform_state, batch))

    return compiled(init)(jax.random.key(seed), sample)


def _loss(config: Config, prepared: Prepared, train: Batch) -> Loss:
    target = prepared.schema.target
    weights = None
    if target.task == "classification":
        counts = np.bincount(train["label"], minlength=len(target.classes))
        weights = class_weight_array(config.training.class_weights, target.classes, counts)
    return make_loss(config.training, task=target.task, class_weights=weights)


def _scorer(prepared: Prepared, parts: Parts, loss: Loss, output_state: Any, precision: str) -> Scorer:
    largest = IMAGE_ROWS if prepared.schema.image else TABLE_ROWS
    rows = bucket_of(max(len(prepared.split.train), len(prepared.split.validation), 1), largest)

    @compiled
    def total(outputs: jax.Array, label: jax.Array, weight: jax.Array | None) -> jax.Array:
        return loss(outputs, parts.output.targets(output_state, label), weight)

    def mean_loss(outputs: np.ndarray, batch: Batch) -> float:
        return float(total(outputs, batch["label"], batch.get("weight")))

    return Scorer(prepared, compiled(parts.forward, precision=precision), mean_loss, rows)


def _measure(scorer: Scorer, fitted: tuple[Any, Any], monitor: str) -> Measure:
    """Return what looks at the validation rows after each epoch, and at the training rows when `monitor` needs it."""
    of_train = monitor.startswith("train_") and monitor not in ("train_loss", "train_accuracy")

    def measure(variables: Any) -> dict[str, float]:
        states = States(variables, *fitted)
        found = {f"val_{name}": value for name, value in scorer.metrics(states, "validation").items()}
        train = scorer.metrics(states, "train") if of_train else {}
        return found | {f"train_{name}": value for name, value in train.items() if name not in ("loss", "accuracy")}

    return measure
