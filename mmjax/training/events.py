"""The training loop as a generator of events: it decides nothing about files or terminals, watchers do.

`train_events` yields what happens and returns a TrainResult. State inside an event is valid only until the generator
resumes, because the next step takes over its memory.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from mmjax.backend import compile_ahead, compiled, platform
from mmjax.config import MemberLoop, Training
from mmjax.data.pipeline import epoch_batches, take
from mmjax.data.stream import window_steps
from mmjax.data.stream import windows as read_windows
from mmjax.errors import TrainingError
from mmjax.interrupts import Ending
from mmjax.schema import Batch
from mmjax.training.event_types import EpochEnded, Event, Finished, Progressed, Started, Stopped
from mmjax.training.members import (
    Chunk,
    Members,
    Trial,
    make_member_chunk,
    member_of,
    try_member_loops,
    where_active,
)
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
    threads: int = 1
    """Of the device: as many members run at once where each is a program of its own."""
    ends_at: float | None = None
    """By `time.monotonic`: no epoch begins that would not end before it."""


class TrainResult(NamedTuple):
    """What training made."""

    variables: Any
    """Of the best epoch, or of the last when nothing is monitored or `save_best` is off."""
    history: tuple[dict[str, float], ...]
    best_epoch: int
    epochs: int
    seconds: float
    samples_per_second: float
    """Rows per second inside training steps, the first chunk of the run (compilation) left out; of all members."""
    best_epochs: tuple[int, ...] = ()
    """Of each member; empty for one model."""


Measure = Callable[[Any], list[dict[str, float]]]
"""`measure(variables) -> [{"val_loss": ..., "val_accuracy": ..., ...}]` after each epoch, of each model."""


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
    smaller: tuple[tuple[int, Learner], ...] = ()
    """(last epoch, learner) of epochs that train at smaller images first, in order; `learner` is that of the others."""
    members: Members | None = None
    """None: one model. Else state, fitted Transform (with folds) and best weights have a leading axis."""
    chunk: Chunk | None = None
    """The steps of `learner`, where they are being compiled already (`start_compiling`)."""

    @property
    def models(self) -> int:
        """How many are trained."""
        return len(self.members.numbers) if self.members else 1

    @property
    def epoch_rows(self) -> int:
        """Rows that a model sees in an epoch, before what fills no batch is left out."""
        return self.members.shortest if self.members else len(self.rows)


def train_events(
    state: TrainState, task: Task, plan: Plan, resumed: Snapshot | None = None
) -> Generator[Event | Snapshot, None, TrainResult]:
    """Yield the events of one run from `state`, or from `resumed`, and return its TrainResult.

    A Snapshot comes after each chunk of about a second and after each epoch. Raises TrainingError, after a last
    Snapshot of the newest state known to be finite, when a loss or a weight is not finite.
    """
    epochs, batch_size, rows = _decided(plan.training.epochs), _decided(plan.training.batch_size), task.epoch_rows
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
        seeds=len(plan.training.seeds),
    )
    started = time.perf_counter()
    program, clock = _make_program(task, plan), _Clock(batch_size * task.models)
    stop = init_stop(direction, members=task.models if task.members else None)
    first = Position(epoch=1, batch=0, history=(), best_epoch=0, stop=stop, over=False)
    now = _on_device(resumed or Snapshot(state, empty_totals(state.step.shape), None, first))
    good, timed = _kept(now), False
    while not now.position.over:
        epoch_started, epoch = time.perf_counter(), now.position.epoch
        now, clock = yield from _run_epoch(program, now, clock, plan)
        state, totals = now.state, now.totals
        bad = _first_bad(totals)
        if bad >= 0 or not all_finite((state.params, state.batch_stats, state.ema)):
            yield good._replace(last=True)
            raise TrainingError(_not_finite(bad, steps_done(state), epoch, plan.training))
        now, improved = _after_epoch(now, _measured(now, task), plan, direction)
        metrics = now.position.history[-1]
        rate = float(task.learning_rates[epoch - 1])
        seconds = time.perf_counter() - epoch_started
        # The first epoch compiled too, which no other will: of it only the later steps tell how long the next takes.
        ahead = seconds if timed else clock.seconds / max(clock.steps, 1) * program.batches
        late = plan.ends_at is not None and time.monotonic() + ahead > plan.ends_at and not now.position.over
        timed = True
        if late:
            now = now._replace(position=now.position._replace(over=True))
        good = _kept(now)
        yield EpochEnded(epoch, epochs, steps_done(state), metrics, rate, seconds, clock.rate(), improved)
        yield now
        if now.position.over and epoch < epochs:
            patience = f"{plan.monitor} has not improved for {plan.training.early_stopping.patience} epochs"
            yield Stopped(epoch, "the budget is used up" if late else patience)
    seconds = time.perf_counter() - started
    history, best_epoch = now.position.history, now.position.best_epoch
    value = history[best_epoch - 1].get(plan.monitor, float("nan"))
    value = float(np.mean(now.position.stop.best)) if task.members and plan.monitor else value
    reason = "stopped early" if len(history) < epochs else "all epochs done"
    seeds = len(plan.training.seeds)
    yield Finished(len(history), best_epoch, plan.monitor, value, seconds, reason, task.models, seeds)
    best = plan.training.checkpoint.save_best and bool(plan.monitor)
    variables, kept = (now.best, best_epoch) if best else (_copy(eval_variables(now.state)), len(history))
    stop = now.position.stop
    epochs_kept = np.where(stop.best_epoch < 0, stop.since, stop.best_epoch)  # without a best one the last
    each = tuple(np.atleast_1d(epochs_kept).tolist()) if task.members and best else ()
    return TrainResult(variables, history, kept, len(history), seconds, clock.rate(), each)


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
    """i32[S, B], or i32[E, S, B] for members: indices into `data`."""
    start: int
    stop: int
    """Batches `start .. stop` of `rows` are to be done."""


class _Program(NamedTuple):
    """A compiled chunk with what it always reads."""

    chunks: tuple[tuple[float, Chunk], ...]
    """(last epoch, chunk), in order; the last one is for all others."""
    windows: Callable[[int, int], Iterator[_Window]]
    """`(epoch, first batch) -> the rest of the epoch`."""
    fitted: tuple[Any, Any]
    loop: bool
    batches: int
    """Of an epoch."""

    def chunk(self, epoch: int) -> Chunk:
        """Return what runs the steps of an epoch."""
        return next(chunk for last, chunk in self.chunks if epoch <= last)

    def run(self, now: Snapshot, window: _Window, start: int, count: int):
        """Return the state and sums after `count` steps: one program, or one call a step."""
        carry, active, chunk = (now.state, now.totals), now.position.stop.active, self.chunk(now.position.epoch)
        members = (active,) if np.ndim(active) else ()
        if self.loop:
            return chunk(*carry, window.data, *self.fitted, window.rows, start, count, *members)
        for index in range(start, start + count):
            carry = chunk(*carry, window.data, *self.fitted, window.rows, index, 1, *members)
        return carry


def _make_program(task: Task, plan: Plan) -> _Program:
    """Return what runs the steps of a run. With members that no one has said how to compute, a trial decides first."""
    batch_size = _decided(plan.training.batch_size)
    windows = (_streamed if task.streamed else _resident)(task, plan.seed, batch_size)
    stages = (*task.smaller, (math.inf, task.learner))
    chunks = tuple((last, _chunk(learner, task, plan)) for last, learner in stages)
    return _Program(chunks, windows, task.fitted, plan.loop, task.epoch_rows // batch_size)


def start_compiling(task: Task, plan: Plan, state: TrainState) -> Task:
    """Return the Task of one model in memory with its steps being compiled meanwhile; `state` may be shapes.

    Nothing waits for it until the steps are run: so initial weights can be made beside it.
    """
    batch_size = _decided(plan.training.batch_size)
    chunk, rows = _chunk(task.learner, task, plan), (task.epoch_rows // batch_size, batch_size)
    data = {name: shaped(values, len(task.rows)) for name, values in task.data.items()}
    rest = (empty_totals(), data, *task.fitted, jax.ShapeDtypeStruct(rows, jnp.int32), 0, 1)
    ready = compile_ahead(chunk, state, *rest)

    def run(*arguments: Any) -> tuple[TrainState, Totals]:
        ready.result()
        return chunk(*arguments)

    return task._replace(chunk=run)


def shaped(values: np.ndarray, rows: int) -> jax.ShapeDtypeStruct:
    """Return what so many rows of a host array are on the device, without values."""
    return jax.ShapeDtypeStruct((rows, *values.shape[1:]), jax.dtypes.canonicalize_dtype(values.dtype))


def _chunk(learner: Learner, task: Task, plan: Plan) -> Any:
    """Return the compiled steps of a learner; they are compiled when they first run."""
    if task.chunk is not None and learner is task.learner:
        return task.chunk
    if task.members is None:
        steps = make_train_chunk(learner, seed=plan.seed, loop=plan.loop)
        return compiled(steps, donate=(0, 1), precision=plan.precision)
    how = plan.training.member_loop
    assert how is not msgspec.UNSET, "a trial decides it before training"
    return _member_chunk(learner, task, plan, how)


def _member_chunk(learner: Learner, task: Task, plan: Plan, how: MemberLoop) -> Chunk:
    assert task.members is not None
    return make_member_chunk(
        learner,
        seed=plan.seed,
        loop=plan.loop,
        folded=bool(task.members.folds),
        how=how,
        precision=plan.precision,
        threads=plan.threads,
    )


def member_trials(state: TrainState, task: Task, plan: Plan) -> list[Trial]:
    """Return how long a step of all members takes, computed in each way; the fastest first."""
    assert task.members is not None
    active = np.ones(task.models, bool)
    (window,) = _resident(task, plan.seed, _decided(plan.training.batch_size))(1, 0)

    def arguments() -> tuple[Any, ...]:
        totals = empty_totals(state.step.shape)
        return *jax.device_put(on_host((state, totals))), window.data, *task.fitted, window.rows, active

    batches = window.rows.shape[-2]
    steps = _decided(plan.training.epochs) * batches
    return try_member_loops(
        lambda how: _member_chunk(task.learner, task, plan, how),
        arguments,
        steps=steps,
        most=batches if plan.loop else 1,
        ends_at=plan.ends_at,
    )


def timed_epoch(state: TrainState, task: Task, plan: Plan) -> float:
    """Return about the seconds of the last epoch of one model with its look at the validation rows.

    Compilation is left out. At most a second of steps is timed, or one step; the state stays as it is.
    """
    program = _make_program(task, plan)
    first = Position(
        epoch=_decided(plan.training.epochs), batch=0, history=(), best_epoch=0, stop=init_stop("min"), over=False
    )
    window, clock = next(iter(program.windows(1, 0))), _Clock(1)
    now = _on_device(Snapshot(state, empty_totals(), None, first))
    count = window.stop - window.start
    for _ in range(3):  # the first compiles
        steps = min(clock.chunk_steps(), count)
        began = time.perf_counter()
        carry = jax.block_until_ready(program.run(now, window, window.start, steps))
        clock = clock.add(steps, time.perf_counter() - began)
        now = now._replace(state=carry[0], totals=carry[1])
    variables = eval_variables(now.state)
    task.measure(variables)
    began = time.perf_counter()
    task.measure(variables)
    return program.batches / clock.rate() + time.perf_counter() - began


def _resident(task: Task, seed: int, batch_size: int) -> Callable[[int, int], Iterator[_Window]]:
    """Return windows that are whole epochs: all training rows stay on the device."""
    data = jax.device_put(take(task.data, task.rows))
    places = [np.searchsorted(task.rows, rows).astype(np.int32) for rows in task.members.rows] if task.members else []

    def windows(epoch: int, first: int) -> Iterator[_Window]:
        order = _epoch_order(task, places, seed, epoch, batch_size)
        yield _Window(data, jax.device_put(order), first, order.shape[-2])

    return windows


def _epoch_order(task: Task, places: list[np.ndarray], seed: int, epoch: int, batch_size: int) -> np.ndarray:
    """Return the rows of each batch as indices into `task.rows`, i32[S, B], or i32[E, S, B] for members.

    `places i32[N_e]` are the rows of each member, as such indices.
    """
    if task.members is None:
        return epoch_batches(seed, epoch, len(task.rows), batch_size)
    steps, orders = task.epoch_rows // batch_size, []
    for number, own in zip(task.members.numbers, places, strict=True):
        orders.append(own[epoch_batches(seed, epoch, len(own), batch_size, number)[:steps]])
    return np.stack(orders)


def _streamed(task: Task, seed: int, batch_size: int) -> Callable[[int, int], Iterator[_Window]]:
    """Return windows that are read ahead from disk, in the very order of resident rows."""
    steps = min(window_steps(task.data, batch_size), len(task.rows) // batch_size)  # a small table fills no window
    rows = jax.device_put(np.arange(steps * batch_size, dtype=np.int32).reshape(steps, batch_size))

    def windows(epoch: int, first: int) -> Iterator[_Window]:
        order = epoch_batches(seed, epoch, len(task.rows), batch_size)
        with contextlib.closing(read_windows(task.data, task.rows, order, steps=steps, start=first)) as ahead:
            counts = (min(steps, len(order) - start) for start in range(first, len(order), steps))
            on_device = (_Window(jax.device_put(data), rows, 0, n) for data, n in zip(ahead, counts, strict=True))
            before = next(on_device, None)  # the next one moves there while this one is computed with
            while before is not None:
                after = next(on_device, None)
                yield before
                before = after

    return windows


def _run_epoch(
    program: _Program, now: Snapshot, clock: _Clock, plan: Plan
) -> Generator[Event | Snapshot, None, tuple[Snapshot, _Clock]]:
    """Yield a Snapshot after each chunk, and Progressed about once a second; return the state after the epoch."""
    epochs, epoch, done = _decided(plan.training.epochs), now.position.epoch, now.position.batch
    if epoch > 1 and program.chunk(epoch) is not program.chunk(epoch - 1):
        clock = _Clock(clock.batch_size, reported=clock.reported)  # another size: its first call compiles too
    for window in program.windows(epoch, done):
        at = window.start
        while at < window.stop and _first_bad(now.totals) < 0:
            count = min(clock.chunk_steps(), window.stop - at)
            began = time.perf_counter()
            state, totals = jax.block_until_ready(program.run(now, window, at, count))
            clock = clock.add(count, time.perf_counter() - began)
            at, done = at + count, done + count
            now = now._replace(state=state, totals=totals, position=now.position._replace(batch=done))
            if time.perf_counter() - clock.reported >= CHUNK_S:
                clock = clock._replace(reported=time.perf_counter())
                loss = float(np.asarray(totals.loss).sum()) / max(float(np.asarray(totals.rows).sum()), 1e-9)
                step = (epoch - 1) * program.batches + done
                yield Progressed(epoch, epochs, step, epochs * program.batches, clock.rate(), loss)
            if done < program.batches and _first_bad(totals) < 0:
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


def _measured(now: Snapshot, task: Task) -> list[dict[str, float]]:
    """Return the metrics of the epoch that ended: of the model, or of each member that still learns."""
    each = task.measure(eval_variables(now.state))
    if task.members is None:
        return [_epoch_metrics(now.totals, task) | each[0]]
    totals, active = on_host(now.totals), np.flatnonzero(now.position.stop.active).tolist()
    return [_epoch_metrics(member_of(totals, e), task) | each[e] for e in active]


def _mean(each: list[dict[str, float]]) -> dict[str, float]:
    """Return the metrics of one model as they are, of several their mean."""
    return each[0] if len(each) == 1 else {name: float(np.mean([one[name] for one in each])) for name in each[0]}


def _monitored(each: list[dict[str, float]], name: str, active: Any) -> Any:
    """Return f32[] of one model, f32[E] of members: NaN for those that learn no more."""
    if not np.ndim(active):
        return np.float32(each[0][name])
    values = np.full(len(active), np.nan, np.float32)
    values[np.flatnonzero(active)] = [one[name] for one in each]
    return values


def _after_epoch(
    now: Snapshot, each: list[dict[str, float]], plan: Plan, direction: Literal["min", "max"]
) -> tuple[Snapshot, bool]:
    """Return the Snapshot at the start of the next epoch, and whether the one that ended is the best so far.

    `each` holds the metrics of the model, or of each member that still learns; the history keeps their mean.
    """
    position, epochs, metrics = now.position, _decided(plan.training.epochs), _mean(each)
    epoch, history = position.epoch, (*position.history, metrics)
    after = position._replace(epoch=epoch + 1, batch=0, history=history, over=epoch >= epochs)
    totals = empty_totals(now.state.step.shape)
    if not plan.monitor:
        return now._replace(totals=totals, best=None, position=after._replace(best_epoch=epoch)), False
    if plan.monitor not in metrics:
        raise TrainingError(
            f"monitor: expected one of {', '.join(metrics)}, got '{plan.monitor}'; set training.early_stopping.monitor"
        )
    stopping = plan.training.early_stopping
    # An inactive state improves no more: without early stopping, a late best epoch would not be seen.
    patience = stopping.patience if stopping.enabled is True and isinstance(stopping.patience, int) else None
    stop, better = update_stop(
        position.stop,
        _monitored(each, plan.monitor, position.stop.active),
        np.int32(epoch),
        direction=direction,
        patience=patience,
        min_delta=stopping.min_delta,
    )
    improved, best, best_epoch = bool(np.any(better)), now.best, position.best_epoch
    kept = better | (position.stop.active & (stop.best_epoch < 0))  # of NaN only, none is better: then the newest
    if best is None or (np.any(kept) and not np.ndim(kept)):
        best, best_epoch = _copy(eval_variables(now.state)), epoch
    elif np.any(kept):
        best, best_epoch = _chooser()(kept, eval_variables(now.state), best), epoch
    over = after.over or not bool(np.any(stop.active))
    after = after._replace(stop=stop, best_epoch=best_epoch, over=over)
    return Snapshot(now.state, totals, best, after), improved


def _first_bad(totals: Totals) -> int:
    """Return the first step whose loss was not finite, of any member; -1 where there is none."""
    return int(np.max(np.asarray(totals.first_bad)))


def steps_done(state: TrainState) -> int:
    """Return the batches seen, of the member that saw the most."""
    return int(np.max(np.asarray(state.step)))


def _on_device(snapshot: Snapshot) -> Snapshot:
    """Return the Snapshot with its arrays on the device, in buffers of their own, whatever they were before."""
    state, totals, best = jax.device_put(on_host((snapshot.state, snapshot.totals, snapshot.best)))
    return Snapshot(state, totals, best, snapshot.position)


def _epoch_metrics(totals: Totals, task: Task) -> dict[str, float]:
    rows = max(float(totals.rows), 1e-9)
    metrics = {"train_loss": float(totals.loss) / rows}
    label = task.data["label"]
    if np.issubdtype(label.dtype, np.integer):
        metrics["train_accuracy" if label.ndim == 1 else "train_subset_accuracy"] = float(totals.correct) / rows
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


def all_finite(tree: Any) -> bool:
    """Return whether every number in the tree is finite. The last step's update shows in no loss of its epoch.

    On a CPU NumPy looks at the arrays where they are: a program for that takes as long to compile as a small epoch.
    """
    if platform() == "cpu":
        return all(bool(np.isfinite(np.asarray(leaf)).all()) for leaf in jax.tree.leaves(tree))
    return bool(_finite_on_device()(tree))


@functools.cache
def _finite_on_device() -> Callable[[Any], jax.Array]:
    def finite(tree: Any) -> jax.Array:
        return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()

    return compiled(finite)


def _copy(tree: Any) -> Any:
    """Return copies that survive when the next step takes over the originals' memory."""
    return _copier()(tree)


@functools.cache
def _copier() -> Callable[[Any], Any]:
    """Return one program for all leaves: dozens of calls after each epoch are a twentieth of a small run."""
    return compiled(lambda tree: jax.tree.map(jnp.copy, tree))


@functools.cache
def _chooser() -> Callable[[Any, Any, Any], Any]:
    return compiled(where_active)


def _kept(now: Snapshot) -> Snapshot:
    """Return the Snapshot with copies of what the next step takes over."""
    state, totals = _copy((now.state, now.totals))
    return now._replace(state=state, totals=totals)


def on_host(tree: Any) -> Any:
    """Return the arrays of a tree as NumPy copies: a mere view would keep the buffer from being donated."""
    return jax.tree.map(lambda leaf: np.array(leaf), tree)


def _decided(value: int | msgspec.UnsetType) -> int:
    assert isinstance(value, int), "the recipe decides every field before training"
    return value
