"""The training loop as a generator of events: it decides nothing about files or terminals, watchers do.

`train_events` yields what happens and returns a TrainResult. State inside an event is valid only until the generator
resumes, because the next step takes over its memory.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Generator, Iterable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.backend import compiled, platform
from mmjax.config import Training
from mmjax.errors import TrainingError
from mmjax.interrupts import Ending
from mmjax.training.event_types import EpochEnded, Event, Finished, Progressed, Started, Stopped
from mmjax.training.members import (
    member_of,
    where_active,
)
from mmjax.training.metrics import metric_direction
from mmjax.training.program import Plan, Program, Snapshot, Task, decided, make_program
from mmjax.training.state import Position, TrainState, eval_variables, on_host
from mmjax.training.steps import Totals, empty_totals
from mmjax.training.stopping import init_stop, update_stop

CHUNK_S = 1.0
"""Seconds of work between two looks at the clock: signals and progress stay prompt."""


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


def train_events(
    state: TrainState, task: Task, plan: Plan, resumed: Snapshot | None = None
) -> Generator[Event | Snapshot, None, TrainResult]:
    """Yield the events of one run from `state`, or from `resumed`, and return its TrainResult.

    A Snapshot comes after each chunk of about a second and after each epoch. Raises TrainingError, after a last
    Snapshot of the newest state known to be finite, when a loss or a weight is not finite.
    """
    epochs, batch_size, rows = decided(plan.training.epochs), decided(plan.training.batch_size), task.epoch_rows
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
    program, clock = make_program(task, plan), _Clock(batch_size * task.models)
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
        yield good
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


def timed_epoch(state: TrainState, task: Task, plan: Plan) -> float:
    """Return about the seconds of the last epoch of one model with its look at the validation rows.

    Compilation is left out. At most a second of steps is timed, or one step; the state stays as it is.
    """
    program = make_program(task, plan)
    first = Position(
        epoch=decided(plan.training.epochs), batch=0, history=(), best_epoch=0, stop=init_stop("min"), over=False
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
    task.measure(variables, np.ones(1, bool))
    began = time.perf_counter()
    task.measure(variables, np.ones(1, bool))
    return program.batches / clock.rate() + time.perf_counter() - began


def _run_epoch(
    program: Program, now: Snapshot, clock: _Clock, plan: Plan
) -> Generator[Event | Snapshot, None, tuple[Snapshot, _Clock]]:
    """Yield a Snapshot after each chunk, and Progressed about once a second; return the state after the epoch."""
    epochs, epoch, done = decided(plan.training.epochs), now.position.epoch, now.position.batch
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
    each = task.measure(eval_variables(now.state), np.atleast_1d(now.position.stop.active))
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
    position, epochs, metrics = now.position, decided(plan.training.epochs), _mean(each)
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
    return now._replace(state=state, totals=totals, own=True)
