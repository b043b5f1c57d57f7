"""The training loop as a generator of events: it decides nothing about files or terminals, watchers do.

`train_events` yields what happens and returns a TrainResult. State inside an event is valid only until the generator
resumes, because the next step takes over its memory.
"""

import time
from collections.abc import Callable, Generator, Iterable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from mmjax.backend import compiled
from mmjax.config import Training
from mmjax.data.pipeline import batch_rows, epoch_batches
from mmjax.errors import TrainingError
from mmjax.schema import Batch
from mmjax.training.event_types import EpochEnded, Event, Finished, Progressed, Started, Stopped
from mmjax.training.metrics import metric_direction
from mmjax.training.state import TrainState, eval_variables
from mmjax.training.steps import Learner, Totals, empty_totals, make_train_chunk
from mmjax.training.stopping import StopState, init_stop, update_stop

CHUNK_S = 1.0
"""Seconds of work between two looks at the clock: signals and progress stay prompt."""


class Snapshot(NamedTuple):
    """The state after an epoch, for those who keep it; arrays are valid until the next event."""

    epoch: int
    step: int
    state: TrainState
    best: Any
    """Variables of the best epoch so far."""
    last: bool
    """True when nothing comes after it."""


class Plan(NamedTuple):
    """How long and by what to train; every field decided."""

    name: str
    seed: int
    training: Training
    loop: bool
    """Run many steps as one program."""
    monitor: str
    """`val_X` or `train_X`; empty keeps the last epoch."""


class TrainResult(NamedTuple):
    """What training made."""

    variables: Any
    """Of the best epoch, or of the last when nothing is monitored or `save_best` is off."""
    history: tuple[dict[str, float], ...]
    best_epoch: int
    epochs: int
    seconds: float
    samples_per_second: float
    """Rows per second inside training steps, the first chunk of the run (compilation) left out."""


Measure = Callable[[Any], dict[str, float]]
"""`measure(variables) -> {"val_loss": ..., "val_accuracy": ..., ...}` after each epoch."""


class Task(NamedTuple):
    """What is trained: the pure parts, resident rows, and who measures."""

    learner: Learner
    data: Batch
    """Training rows with `label`, on the host; they move to the device once."""
    fitted: tuple[Any, Any]
    """Transform and output states."""
    measure: Measure
    learning_rates: np.ndarray
    """f32[epochs]: the learning rate of the last update of each epoch, to tell."""
    parameters: int
    validation_rows: int


class _Progress(NamedTuple):
    """What is known after an epoch."""

    stop: StopState
    best: Any
    best_epoch: int
    history: tuple[dict[str, float], ...]


def train_events(state: TrainState, task: Task, plan: Plan) -> Generator[Event | Snapshot, None, TrainResult]:
    """Yield the events of one run from `state` and return its TrainResult.

    Raises TrainingError, after a last Snapshot of the newest finite state, when a loss or a weight is not finite.
    """
    epochs, batch_size = _decided(plan.training.epochs), _decided(plan.training.batch_size)
    n = batch_rows(task.data)
    chunk = compiled(make_train_chunk(task.learner, seed=plan.seed, loop=plan.loop), donate=(0, 1))
    program = _Program(chunk, jax.device_put(task.data), task.fitted, plan.loop)
    clock, copy, finite = _Clock(batch_size), compiled(_copy), compiled(_all_finite)
    direction = metric_direction(plan.monitor) if plan.monitor else "min"
    yield Started(
        plan.name,
        epochs,
        n // batch_size,
        batch_size,
        n,
        task.validation_rows,
        task.parameters,
        plan.monitor,
        direction,
    )
    started = time.perf_counter()
    progress = _Progress(init_stop(direction), None, 0, ())
    good, epoch = copy(state), 0
    for epoch in range(1, epochs + 1):
        epoch_started = time.perf_counter()
        state, totals, clock = yield from _run_epoch(program, state, clock, plan, epoch)
        if int(totals.first_bad) >= 0 or not bool(finite((state.params, state.batch_stats, state.ema))):
            reached = int(state.step)
            yield Snapshot(epoch - 1, int(good.step), good, progress.best, last=True)
            raise TrainingError(_not_finite(int(totals.first_bad), reached, epoch, plan.training))
        metrics = _epoch_metrics(totals, task) | task.measure(eval_variables(state))
        progress, improved = _track(progress, metrics, epoch, state, plan, direction)
        good, step = copy(state), int(state.step)
        rate = float(task.learning_rates[epoch - 1])
        seconds = time.perf_counter() - epoch_started
        yield EpochEnded(epoch, epochs, step, metrics, rate, seconds, clock.rate(), improved)
        ends = plan.training.early_stopping.enabled is True and not bool(progress.stop.active)
        yield Snapshot(epoch, step, state, progress.best, last=ends or epoch == epochs)
        if ends:
            yield Stopped(epoch, f"{plan.monitor} has not improved for {plan.training.early_stopping.patience} epochs")
            break
    seconds = time.perf_counter() - started
    value = progress.history[progress.best_epoch - 1].get(plan.monitor, float("nan"))
    reason = "stopped early" if epoch < epochs else "all epochs done"
    yield Finished(epoch, progress.best_epoch, plan.monitor, value, seconds, reason)
    best = plan.training.checkpoint.save_best and bool(plan.monitor)
    variables, kept = (progress.best, progress.best_epoch) if best else (_copy(eval_variables(state)), epoch)
    return TrainResult(variables, progress.history, kept, epoch, seconds, clock.rate())


class _Clock(NamedTuple):
    """Chooses how many steps make about a second, and knows the rate. Time never decides what is computed."""

    batch_size: int
    calls: int = 0
    steps: int = 0
    seconds: float = 0.0
    """Of `steps`; the first call compiles and is left out."""
    reported: float = 0.0

    def chunk_steps(self) -> int:
        """Return the number of steps to run before looking again."""
        return max(1, int(CHUNK_S * self.steps / self.seconds)) if self.seconds else 1

    def add(self, steps: int, seconds: float) -> "_Clock":
        """Return the clock with `steps` more on it."""
        if not self.calls:
            return self._replace(calls=1)
        return self._replace(calls=self.calls + 1, steps=self.steps + steps, seconds=self.seconds + seconds)

    def rate(self) -> float:
        """Return rows per second; NaN before the second call."""
        return self.steps * self.batch_size / self.seconds if self.seconds else float("nan")


class _Program(NamedTuple):
    """A compiled chunk with what it always reads."""

    chunk: Callable[..., tuple[TrainState, Totals]]
    data: Batch
    fitted: tuple[Any, Any]
    loop: bool

    def run(self, carry: tuple[TrainState, Totals], rows: jax.Array, start: int, count: int):
        """Return the state and sums after `count` steps: one program, or one call a step."""
        if self.loop:
            return self.chunk(*carry, self.data, *self.fitted, rows, start, count)
        for index in range(start, start + count):
            carry = self.chunk(*carry, self.data, *self.fitted, rows, index, 1)
        return carry


def _run_epoch(
    program: _Program, state: TrainState, clock: _Clock, plan: Plan, epoch: int
) -> Generator[Event, None, tuple[TrainState, Totals, _Clock]]:
    """Yield Progressed about once a second; return the state, the sums of the epoch and the clock."""
    epochs, n = _decided(plan.training.epochs), batch_rows(program.data)
    rows = jax.device_put(epoch_batches(plan.seed, epoch, n, clock.batch_size))
    totals, start, total = empty_totals(), 0, len(rows)
    while start < total and int(totals.first_bad) < 0:
        count = min(clock.chunk_steps(), total - start)
        began = time.perf_counter()
        state, totals = jax.block_until_ready(program.run((state, totals), rows, start, count))
        clock = clock.add(count, time.perf_counter() - began)
        start += count
        if time.perf_counter() - clock.reported >= CHUNK_S:
            clock = clock._replace(reported=time.perf_counter())
            loss = float(totals.loss) / max(float(totals.rows), 1e-9)
            yield Progressed(epoch, epochs, (epoch - 1) * total + start, epochs * total, clock.rate(), loss)
    return state, totals, clock


def watch(
    events: Generator[Event | Snapshot, None, TrainResult],
    callbacks: Iterable[Callable[[Event], None]],
    keep: Callable[[Snapshot], Iterable[Event]],
) -> TrainResult:
    """Return the TrainResult of `events`, after showing each event to each callback and each Snapshot to `keep`."""
    callbacks = tuple(callbacks)
    while True:
        try:
            event = next(events)
        except StopIteration as stop:
            return stop.value
        for told in keep(event) if isinstance(event, Snapshot) else (event,):
            for callback in callbacks:
                callback(told)


def _track(
    progress: _Progress,
    metrics: dict[str, float],
    epoch: int,
    state: TrainState,
    plan: Plan,
    direction: Literal["min", "max"],
) -> tuple[_Progress, bool]:
    """Return the progress with this epoch in it, and whether it is the best so far."""
    history = (*progress.history, metrics)
    if not plan.monitor:
        return _Progress(progress.stop, (), epoch, history), False
    if plan.monitor not in metrics:
        raise TrainingError(
            f"monitor: expected one of {', '.join(metrics)}, got '{plan.monitor}'; set training.early_stopping.monitor"
        )
    stopping = plan.training.early_stopping
    patience = stopping.patience if isinstance(stopping.patience, int) else _decided(plan.training.epochs)
    stop, better = update_stop(
        progress.stop,
        np.float32(metrics[plan.monitor]),
        np.int32(epoch),
        direction=direction,
        patience=patience,
        min_delta=stopping.min_delta,
    )
    improved = bool(better)
    if improved or progress.best is None:  # a first metric of NaN still leaves something to keep
        return _Progress(stop, _copy(eval_variables(state)), epoch, history), improved
    return _Progress(stop, progress.best, progress.best_epoch, history), improved


def _epoch_metrics(totals: Totals, task: Task) -> dict[str, float]:
    rows = max(float(totals.rows), 1e-9)
    metrics = {"train_loss": float(totals.loss) / rows}
    if np.issubdtype(task.data["label"].dtype, np.integer):
        metrics["train_accuracy"] = float(totals.correct) / rows
    return metrics


def _not_finite(bad_step: int, reached: int, epoch: int, training: Training) -> str:
    """Return what went wrong: the loss at `bad_step`, or (-1) the weights by step `reached`."""
    found = (
        f"expected a finite loss, got a non-finite one at step {bad_step}"
        if bad_step >= 0
        else f"expected finite weights, got non-finite ones by step {reached}"
    )
    kept = "the last good state is kept in the checkpoints; " if training.checkpoint.enabled else ""
    return (
        f"training: {found} (epoch {epoch}, batch size {training.batch_size}); {kept}lower training.learning_rate, "
        "set training.gradient_clip_norm, or look for extreme values in the data"
    )


def _all_finite(tree: Any) -> jax.Array:
    """Return bool[]: every number in the tree is finite. The last step's update shows in no loss of its epoch."""
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.stack(leaves).all()


def _copy(tree: Any) -> Any:
    """Return copies that survive when the next step takes over the originals' memory."""
    return jax.tree.map(jnp.copy, tree)


def _decided(value: int | msgspec.UnsetType) -> int:
    assert isinstance(value, int), "the recipe decides every field before training"
    return value
