"""What a run computes, and on which rows: the Task and its Plan, made into a compiled Program with windows of rows."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from mmjax.backend import compile_ahead, compiled
from mmjax.config import MemberLoop, Training
from mmjax.data.pipeline import epoch_batches, take
from mmjax.data.stream import window_steps
from mmjax.data.stream import windows as read_windows
from mmjax.schema import Batch
from mmjax.training.members import Chunk, Members, Trial, make_member_chunk, try_member_loops
from mmjax.training.state import Position, TrainState, on_host
from mmjax.training.steps import Learner, Totals, empty_totals, make_train_chunk


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


Measure = Callable[[Any, np.ndarray], list[dict[str, float]]]
"""`measure(variables, active bool[E]) -> [{"val_loss": ..., "val_accuracy": ..., ...}]` after each epoch, of each
model; of one that learns no more an empty dict."""


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


class Snapshot(NamedTuple):
    """All that a run needs to go on from here; as the trainer yields it, valid until the next event, or as long as it
    is held where its arrays are its own.
    """

    state: TrainState
    totals: Totals
    """Sums over the batches of the epoch under way."""
    best: Any
    """Variables of the best epoch so far; None before the first one."""
    position: Position
    last: bool = False
    """True for the last good one of a run that cannot go on: it is to be kept."""
    own: bool = False
    """True where no step takes over the memory of its arrays: so of each epoch's end."""


class Window(NamedTuple):
    """Some of the batches of an epoch, on the device."""

    data: Batch
    rows: jax.Array
    """i32[S, B], or i32[E, S, B] for members: indices into `data`."""
    start: int
    stop: int
    """Batches `start .. stop` of `rows` are to be done."""


class Program(NamedTuple):
    """A compiled chunk with what it always reads."""

    chunks: tuple[tuple[float, Chunk], ...]
    """(last epoch, chunk), in order; the last one is for all others."""
    windows: Callable[[int, int], Iterator[Window]]
    """`(epoch, first batch) -> the rest of the epoch`."""
    fitted: tuple[Any, Any]
    loop: bool
    batches: int
    """Of an epoch."""

    def chunk(self, epoch: int) -> Chunk:
        """Return what runs the steps of an epoch."""
        return next(chunk for last, chunk in self.chunks if epoch <= last)

    def run(self, now: Snapshot, window: Window, start: int, count: int):
        """Return the state and sums after `count` steps: one program, or one call a step."""
        carry, active, chunk = (now.state, now.totals), now.position.stop.active, self.chunk(now.position.epoch)
        members = (active,) if np.ndim(active) else ()
        if self.loop:
            return chunk(*carry, window.data, *self.fitted, window.rows, start, count, *members)
        for index in range(start, start + count):
            carry = chunk(*carry, window.data, *self.fitted, window.rows, index, 1, *members)
        return carry


def make_program(task: Task, plan: Plan) -> Program:
    """Return what runs the steps of a run. With members that no one has said how to compute, a trial decides first."""
    batch_size = decided(plan.training.batch_size)
    windows = (streamed_windows if task.streamed else resident_windows)(task, plan.seed, batch_size)
    stages = (*task.smaller, (math.inf, task.learner))
    chunks = tuple((last, _chunk(learner, task, plan)) for last, learner in stages)
    return Program(chunks, windows, task.fitted, plan.loop, task.epoch_rows // batch_size)


def start_compiling(task: Task, plan: Plan, state: TrainState) -> Task:
    """Return the Task of one model in memory with its steps being compiled meanwhile; `state` may be shapes.

    Nothing waits for it until the steps are run: so initial weights can be made beside it.
    """
    batch_size = decided(plan.training.batch_size)
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
    (window,) = resident_windows(task, plan.seed, decided(plan.training.batch_size))(1, 0)

    def arguments() -> tuple[Any, ...]:
        totals = empty_totals(state.step.shape)
        return *jax.device_put(on_host((state, totals))), window.data, *task.fitted, window.rows, active

    batches = window.rows.shape[-2]
    steps = decided(plan.training.epochs) * batches
    return try_member_loops(
        lambda how: _member_chunk(task.learner, task, plan, how),
        arguments,
        steps=steps,
        most=batches if plan.loop else 1,
        ends_at=plan.ends_at,
    )


def resident_windows(task: Task, seed: int, batch_size: int) -> Callable[[int, int], Iterator[Window]]:
    """Return windows that are whole epochs: all training rows stay on the device."""
    data = jax.device_put(take(task.data, task.rows))
    places = [np.searchsorted(task.rows, rows).astype(np.int32) for rows in task.members.rows] if task.members else []

    def windows(epoch: int, first: int) -> Iterator[Window]:
        order = _epoch_order(task, places, seed, epoch, batch_size)
        yield Window(data, jax.device_put(order), first, order.shape[-2])

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


def streamed_windows(task: Task, seed: int, batch_size: int) -> Callable[[int, int], Iterator[Window]]:
    """Return windows that are read ahead from disk, in the very order of resident rows."""
    steps = min(window_steps(task.data, batch_size), len(task.rows) // batch_size)  # a small table fills no window
    rows = jax.device_put(np.arange(steps * batch_size, dtype=np.int32).reshape(steps, batch_size))

    def windows(epoch: int, first: int) -> Iterator[Window]:
        order = epoch_batches(seed, epoch, len(task.rows), batch_size)
        with contextlib.closing(read_windows(task.data, task.rows, order, steps=steps, start=first)) as ahead:
            counts = (min(steps, len(order) - start) for start in range(first, len(order), steps))
            on_device = (Window(jax.device_put(data), rows, 0, n) for data, n in zip(ahead, counts, strict=True))
            before = next(on_device, None)  # the next one moves there while this one is computed with
            while before is not None:
                after = next(on_device, None)
                yield before
                before = after

    return windows


def decided(value: int | msgspec.UnsetType) -> int:
    """Return a field that the recipe has decided."""
    assert isinstance(value, int), "the recipe decides every field before training"
    return value
