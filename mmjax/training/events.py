"""The training loop as a generator of events: it decides nothing about files or terminals, watchers do.

`train_events` yields what happens and returns a TrainResult. State inside an event is valid only until the generator
resumes, because the next step takes over its memory.
"""

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from mmjax.backend import compiled
from mmjax.config import Training
from mmjax.data.pipeline import epoch_batches, take
from mmjax.data.stream import window_steps
from mmjax.data.stream import windows as read_windows
from mmjax.errors import TrainingError
from mmjax.interrupts import Ending
from mmjax.schema import Batch
from mmjax.training.event_types import EpochEnded, Event, Finished, Progressed, Started, Stopped
from mmjax.training.metrics import metric_direction
from mmjax.training.state import Position, TrainState, eval_variables
from mmjax.training.steps import Learner, Totals, empty_totals, make_train_chunk
from mmjax.training.stopping import init_stop, update_stop

CHUNK_S = 1.0
"""Seconds of work between two looks at the clock: signals and progress stay prompt."""


class Snapshot(NamedTuple):
    """All that a run needs to go on from here; as the trainer yields it, valid until the next event."""

    state: TrainState
    totals: Totals
    """Sums over the batches of the epoch under way."""
    best: Any
    """Variables of the best epoch so far; None before the first one."""
    position: Position
    last: bool = False
    """True for the last good one of a run that cannot go on: it is to be kept."""


class Plan(NamedTuple):
    """How long and by what to train; every field decided."""

    name: str
    seed: int
    training: Training
    loop: bool
    """Run many steps as one program."""
    monitor: str
    """`val_X` or `train_X`; empty keeps the last epoch."""
    precision: str = "float32"
    """The compute type that the network was built for."""


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
    """What is trained: the pure parts, the rows, and who measures."""

    learner: Learner
    data: Batch
    """All rows with `label`, on the host or mapped from disk."""
    rows: np.ndarray
    """Indices into `data` of the training rows, i64[N]."""
    streamed: bool
    """False: the training rows move to the device once. True: they are read from disk, window by window."""
    fitted: tuple[Any, Any]
    """Transform and output states."""
    measure: Measure
    learning_rates: np.ndarray
    """f32[epochs]: the learning rate of the last update of each epoch, to tell."""
    parameters: int
    validation_rows: int


def train_events(
    state: TrainState, task: Task, plan: Plan, resumed: Snapshot | None = None
) -> Generator[Event | Snapshot, None, TrainResult]:
    """Yield the events of one run from `state`, or from `resumed`, and return its TrainResult.

    A Snapshot comes after each chunk of about a second and after each epoch. Raises TrainingError, after a last
    Snapshot of the newest state known to be finite, when a loss or a weight is not finite.
    """
    epochs, batch_size, rows = _decided(plan.training.epochs), _decided(plan.training.batch_size), len(task.rows)
    direction = metric_direction(plan.monitor) if plan.monitor else "min"
    yield Started(
        plan.name,
        epochs,
        rows // batch_size,
        batch_size,
        rows,
        task.validation_rows,
        task.parameters,
        plan.monitor,
        direction,
        may_stop=plan.training.early_stopping.enabled is True,
    )
    started = time.perf_counter()
    program, clock, finite = _make_program(task, plan), _Clock(batch_size), compiled(_all_finite)
    first = Position(epoch=1, batch=0, history=(), best_epoch=0, stop=init_stop(direction), over=False)
    now = _on_device(resumed or Snapshot(state, empty_totals(), None, first))
    good = _kept(now)
    while not now.position.over:
        epoch_started, epoch = time.perf_counter(), now.position.epoch
        now, clock = yield from _run_epoch(program, now, clock, plan)
        state, totals = now.state, now.totals
        if int(totals.first_bad) >= 0 or not bool(finite((state.params, state.batch_stats, state.ema))):
            yield good._replace(last=True)
            raise TrainingError(_not_finite(int(totals.first_bad), int(state.step), epoch, plan.training))
        metrics = _epoch_metrics(totals, task) | task.measure(eval_variables(state))
        now, improved = _after_epoch(now, metrics, plan, direction)
        good = _kept(now)
        rate = float(task.learning_rates[epoch - 1])
        seconds = time.perf_counter() - epoch_started
        yield EpochEnded(epoch, epochs, int(state.step), metrics, rate, seconds, clock.rate(), improved)
        yield now
        if now.position.over and epoch < epochs:
            yield Stopped(epoch, f"{plan.monitor} has not improved for {plan.training.early_stopping.patience} epochs")
    seconds = time.perf_counter() - started
    history, best_epoch = now.position.history, now.position.best_epoch
    value = history[best_epoch - 1].get(plan.monitor, float("nan"))
    reason = "stopped early" if len(history) < epochs else "all epochs done"
    yield Finished(len(history), best_epoch, plan.monitor, value, seconds, reason)
    best = plan.training.checkpoint.save_best and bool(plan.monitor)
    variables, kept = (now.best, best_epoch) if best else (_copy(eval_variables(now.state)), len(history))
    return TrainResult(variables, history, kept, len(history), seconds, clock.rate())


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


class _Window(NamedTuple):
    """Some of the batches of an epoch, on the device."""

    data: Batch
    rows: jax.Array
    """i32[S, B]: indices into `data`."""
    start: int
    stop: int
    """Batches `start .. stop` of `rows` are to be done."""


class _Program(NamedTuple):
    """A compiled chunk with what it always reads."""

    chunk: Callable[..., tuple[TrainState, Totals]]
    windows: Callable[[int, int], Iterator[_Window]]
    """`(epoch, first batch) -> the rest of the epoch`."""
    fitted: tuple[Any, Any]
    loop: bool
    batches: int
    """Of an epoch."""

    def run(self, carry: tuple[TrainState, Totals], window: _Window, start: int, count: int):
        """Return the state and sums after `count` steps: one program, or one call a step."""
        if self.loop:
            return self.chunk(*carry, window.data, *self.fitted, window.rows, start, count)
        for index in range(start, start + count):
            carry = self.chunk(*carry, window.data, *self.fitted, window.rows, index, 1)
        return carry


def _make_program(task: Task, plan: Plan) -> _Program:
    steps = make_train_chunk(task.learner, seed=plan.seed, loop=plan.loop)
    chunk = compiled(steps, donate=(0, 1), precision=plan.precision)
    batch_size = _decided(plan.training.batch_size)
    windows = (_streamed if task.streamed else _resident)(task, plan.seed, batch_size)
    return _Program(chunk, windows, task.fitted, plan.loop, len(task.rows) // batch_size)


def _resident(task: Task, seed: int, batch_size: int) -> Callable[[int, int], Iterator[_Window]]:
    """Return windows that are whole epochs: all training rows stay on the device."""
    data = jax.device_put(take(task.data, task.rows))

    def windows(epoch: int, first: int) -> Iterator[_Window]:
        order = epoch_batches(seed, epoch, len(task.rows), batch_size)
        yield _Window(data, jax.device_put(order), first, len(order))

    return windows


def _streamed(task: Task, seed: int, batch_size: int) -> Callable[[int, int], Iterator[_Window]]:
    """Return windows that are read ahead from disk, in the very order of resident rows."""
    steps = min(window_steps(task.data, batch_size), len(task.rows) // batch_size)  # a small table fills no window
    rows = jax.device_put(np.arange(steps * batch_size, dtype=np.int32).reshape(steps, batch_size))

    def windows(epoch: int, first: int) -> Iterator[_Window]:
        order = epoch_batches(seed, epoch, len(task.rows), batch_size)
        with contextlib.closing(read_windows(task.data, task.rows, order, steps=steps, start=first)) as ahead:
            for data in ahead:
                yield _Window(jax.device_put(data), rows, 0, min(steps, len(order) - first))
                first += steps

    return windows


def _run_epoch(
    program: _Program, now: Snapshot, clock: _Clock, plan: Plan
) -> Generator[Event | Snapshot, None, tuple[Snapshot, _Clock]]:
    """Yield a Snapshot after each chunk, and Progressed about once a second; return the state after the epoch."""
    epochs, epoch, done = _decided(plan.training.epochs), now.position.epoch, now.position.batch
    for window in program.windows(epoch, done):
        at = window.start
        while at < window.stop and int(now.totals.first_bad) < 0:
            count = min(clock.chunk_steps(), window.stop - at)
            began = time.perf_counter()
            state, totals = jax.block_until_ready(program.run((now.state, now.totals), window, at, count))
            clock = clock.add(count, time.perf_counter() - began)
            at, done = at + count, done + count
            now = now._replace(state=state, totals=totals, position=now.position._replace(batch=done))
            if time.perf_counter() - clock.reported >= CHUNK_S:
                clock = clock._replace(reported=time.perf_counter())
                loss = float(totals.loss) / max(float(totals.rows), 1e-9)
                step = (epoch - 1) * program.batches + done
                yield Progressed(epoch, epochs, step, epochs * program.batches, clock.rate(), loss)
            if done < program.batches and int(totals.first_bad) < 0:
                yield now
    return now, clock


def watch(
    events: Generator[Event | Snapshot, None, TrainResult],
    callbacks: Iterable[Callable[[Event], None]],
    keep: Callable[[Snapshot], Iterable[Event]],
    ending: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Return the TrainResult of `events`, after showing each event to each callback and each Snapshot to `keep`.

    Raises Ending after the first Snapshot at which `ending()` holds.
    """
    callbacks = tuple(callbacks)
    with contextlib.closing(events):
        while True:
            try:
                event = next(events)
            except StopIteration as stop:
                return stop.value
            leaving = isinstance(event, Snapshot) and ending()  # asked before `keep`, which then keeps this one
            for told in keep(event) if isinstance(event, Snapshot) else (event,):
                for callback in callbacks:
                    callback(told)
            if leaving:
                raise Ending


def _after_epoch(
    now: Snapshot, metrics: dict[str, float], plan: Plan, direction: Literal["min", "max"]
) -> tuple[Snapshot, bool]:
    """Return the Snapshot at the start of the next epoch, and whether the one that ended is the best so far."""
    position, epochs = now.position, _decided(plan.training.epochs)
    epoch, history = position.epoch, (*position.history, metrics)
    after = position._replace(epoch=epoch + 1, batch=0, history=history, over=epoch >= epochs)
    if not plan.monitor:
        return now._replace(totals=empty_totals(), best=None, position=after._replace(best_epoch=epoch)), False
    if plan.monitor not in metrics:
        raise TrainingError(
            f"monitor: expected one of {', '.join(metrics)}, got '{plan.monitor}'; set training.early_stopping.monitor"
        )
    stopping = plan.training.early_stopping
    # An inactive state improves no more: without early stopping, a late best epoch would not be seen.
    patience = stopping.patience if stopping.enabled is True and isinstance(stopping.patience, int) else None
    stop, better = update_stop(
        position.stop,
        np.float32(metrics[plan.monitor]),
        np.int32(epoch),
        direction=direction,
        patience=patience,
        min_delta=stopping.min_delta,
    )
    improved, best, best_epoch = bool(better), now.best, position.best_epoch
    if improved or best is None:  # a first metric of NaN still leaves something to keep
        best, best_epoch = _copy(eval_variables(now.state)), epoch
    over = after.over or not bool(stop.active)
    after = after._replace(stop=stop, best_epoch=best_epoch, over=over)
    return Snapshot(now.state, empty_totals(), best, after), improved


def _on_device(snapshot: Snapshot) -> Snapshot:
    """Return the Snapshot with its arrays on the device, in buffers of their own, whatever they were before."""
    state, totals, best = jax.device_put(on_host((snapshot.state, snapshot.totals, snapshot.best)))
    return Snapshot(state, totals, best, snapshot.position)


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


def _kept(now: Snapshot) -> Snapshot:
    """Return the Snapshot with copies of what the next step takes over."""
    return now._replace(state=_copy(now.state), totals=_copy(now.totals))


def on_host(tree: Any) -> Any:
    """Return the arrays of a tree as NumPy copies: a mere view would keep the buffer from being donated."""
    return jax.tree.map(lambda leaf: np.array(leaf), tree)


def _decided(value: int | msgspec.UnsetType) -> int:
    assert isinstance(value, int), "the recipe decides every field before training"
    return value
