"""The batcher: requests wait in the event loop's queue; the one thread that owns the device runs them, many at once.

A request is dispatched at once while the device is idle; what comes while it is busy is gathered into the next batch,
in the order it came, at most the largest bucket's rows. A request of more rows is cut into slices and joined again.

The event loop appends to `waiting` and hands over a turn; the device's thread takes from it in that turn. A deque and a
SimpleQueue are all they share, so nobody waits for a lock.

Waking a thread and being woken takes longer than a small model does. So requests for one are gathered while the event
loop goes through what has arrived, and `flush` runs them together on the event loop itself, if the device is idle.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mmjax.artifact.predictor import concatenate
from mmjax.data.pipeline import batch_rows, padded_slices, take
from mmjax.schema import Batch
from mmjax.serving.device import Device
from mmjax.serving.wire import Refused
from mmjax.training.scoring import Scores, bucket_of

Program = Callable[[Batch], Scores]
"""A compiled forward pass of one bucket: a host Batch of exactly that many rows to Scores on the host."""

INLINE_S = 5e-4
"""Batches that a model answers within this are run on the event loop."""

SMALL_ROWS = 32
"""Requests of at most so many rows are gathered for `flush`."""

# ---- requests


class Job:
    """A request that waits or runs. The event loop writes it, except for `started`."""

    __slots__ = ("arrived", "batch", "bucket", "deadline", "infer_s", "parts", "result", "rows", "singly", "started")

    def __init__(self, batch: Batch, *, deadline: float | None, singly: bool) -> None:
        self.batch = batch
        self.rows = batch_rows(batch)
        self.deadline = deadline
        """By `time.monotonic`."""
        self.singly = singly
        """Each row alone in the bucket of one."""
        self.result: asyncio.Future[Scores] = asyncio.get_running_loop().create_future()
        self.parts: list[Scores | None] = []
        self.arrived = self.started = time.monotonic()
        self.infer_s = 0.0
        self.bucket = 1


class Piece(NamedTuple):
    """Rows of a Job that go through the device together."""

    job: Job
    place: int
    """Among the pieces of the Job."""
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many."""
        return self.stop - self.start


class Outcome(NamedTuple):
    """What became of a Piece."""

    piece: Piece
    scores: Scores | Exception
    seconds: float
    """Of the compiled call and its transfers."""
    bucket: int


class Batcher:
    """The queue of one model."""

    def __init__(
        self,
        device: Device,
        programs: Mapping[int, Program],
        blank: Batch,
        service_s: Mapping[int, float],
        *,
        observe: Callable[[int, int], None],
    ) -> None:
        """Take the compiled programs by bucket, a Batch of one row, and the seconds that each bucket took when warm.

        `observe(rows, bucket)` is told of every batch, on the event loop.
        """
        self.device = device
        self.programs = programs
        self.largest = max(programs)
        self.waiting: deque[Piece] = deque()
        self.gathered: list[Job] = []
        """Small requests of this round of the event loop, for `flush`."""
        self.rows_waiting = 0
        """Rows that wait or run; the event loop counts."""
        self.warm_s = dict(service_s)
        self.service_s = dict(service_s)
        """Seconds that a batch of each bucket takes now: a moving average."""
        self.hosts = {bucket: host_arrays(blank, bucket) for bucket in programs}
        self.observe = observe


def host_arrays(blank: Batch, rows: int) -> Batch:
    """Return zeroed arrays for `rows` rows like those of `blank`, aligned so that XLA reads them where they are."""
    return {name: _aligned((rows, *values.shape[1:]), values.dtype) for name, values in blank.items()}


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def flush(batcher: Batcher) -> None:
    """Run the small requests of this round of the event loop together, there; or let them wait for the device.

    It holds the event loop for `INLINE_S` at most, as far as one can tell.
    """
    jobs = [job for job in batcher.gathered if not job.result.done()]
    batcher.gathered = []
    pieces = [Piece(job, 0, 0, job.rows) for job in jobs]
    count = sum(job.rows for job in jobs)
    if not _may_run_here(batcher, count):
        _wait(batcher, pieces)
        return
    try:
        outcomes = list(run(batcher, pieces))
    finally:
        batcher.device.busy.release()
    deliver(batcher, outcomes)


class Ran(NamedTuple):
    """What a compiled call gave, and what it took."""

    scores: Scores
    seconds: float
    """Of the call and its transfers."""
    bucket: int


def run_here(batcher: Batcher, batch: Batch) -> Ran | None:
    """Return what became of a small Batch that is run at once on the event loop; None where it has to wait.

    It has to where others wait, the device is busy, or a batch of this size takes longer than `INLINE_S`. Raises what
    the device raises.
    """
    rows = batch_rows(batch)
    if not _may_run_here(batcher, rows):
        return None
    try:
        ran = _run_parts(batcher, [batch], rows)
    finally:
        batcher.device.busy.release()
    batcher.observe(rows, ran.bucket)
    return ran._replace(scores=_rows(ran.scores, 0, rows))


def _may_run_here(batcher: Batcher, rows: int) -> bool:
    """Return whether that many rows can be run at once on the event loop; then the device is held."""
    return is_quick(batcher, rows) and not batcher.waiting and batcher.device.busy.acquire(blocking=False)


def is_quick(batcher: Batcher, rows: int) -> bool:
    """Return whether so many rows take so little time that the event loop may run them itself.

    The warm-up decides, once: a time that was measured beside the event loop counts what the thread waited for Python.
    """
    return 0 < rows <= batcher.largest and batcher.warm_s[bucket_of(rows, batcher.largest)] <= INLINE_S


def _wait(batcher: Batcher, pieces: Sequence[Piece]) -> None:
    batcher.waiting.extend(pieces)
    for _ in pieces:
        batcher.device.turns.put(batcher_turn(batcher))


def _learn(batcher: Batcher, bucket: int, seconds: float) -> None:
    before = batcher.service_s[bucket]
    batcher.service_s[bucket] += 0.1 * (min(seconds, 4 * before) - before)  # one stall of the machine says little


def submit(batcher: Batcher, batch: Batch, *, deadline: float | None = None, deterministic: bool = False) -> Job:
    """Return the Job of an encoded host Batch; its `result` is awaited. On the event loop.

    Raises Refused (504) when it cannot be done in time.
    """
    job = Job(batch, deadline=deadline, singly=deterministic)
    expected = max(expected_s(batcher, job.rows), _least_s(batcher, job, job.rows))
    if deadline is not None and job.arrived + expected > deadline:
        raise late()
    batcher.rows_waiting += job.rows
    quick = job.rows <= SMALL_ROWS and is_quick(batcher, job.rows)
    if quick and not (deterministic or batcher.waiting):
        job.parts = [None]
        batcher.gathered.append(job)
        if len(batcher.gathered) == 1:
            job.result.get_loop().call_soon(flush, batcher)
    else:
        pieces = [Piece(job, i, *at) for i, at in enumerate(padded_slices(job.rows, batcher.largest))]
        job.parts = [None] * len(pieces)
        _wait(batcher, pieces)
    if deadline is not None:
        loop = job.result.get_loop()
        timer = loop.call_at(loop.time() + deadline - job.arrived, leave, batcher, job, late())
        job.result.add_done_callback(lambda _: timer.cancel())
    return job


def expected_s(batcher: Batcher, rows: int) -> float:
    """Return the seconds until `rows` more would be answered, as far as one can tell."""
    # A model that nothing waits for is judged by its warm-up: a stall must not have requests refused forever.
    service_s = batcher.service_s if batcher.rows_waiting else batcher.warm_s
    whole, rest = divmod(batcher.rows_waiting + rows, batcher.largest)
    return whole * service_s[batcher.largest] + (service_s[bucket_of(rest, batcher.largest)] if rest else 0.0)


def _least_s(batcher: Batcher, job: Job, rows: int) -> float:
    """Return the seconds that so many rows of a Job take at least; those that go singly, one after the other."""
    return rows * batcher.warm_s[1] if job.singly else batcher.warm_s[bucket_of(rows, batcher.largest)]


def late() -> Refused:
    """Return the refusal of a request that cannot be answered by its deadline."""
    return Refused(504, "deadline", "expected an answer by the deadline, got none in time; allow more, or ask for less")


def leave(batcher: Batcher, job: Job, error: Exception | None = None) -> None:
    """Take a Job out of the queue: its caller left (no error), or hears `error`. Does nothing when it is done."""
    if job.result.done():
        return
    batcher.rows_waiting -= job.rows
    if error is None:
        job.result.cancel()
    else:
        job.result.set_exception(error)


def batcher_turn(batcher: Batcher) -> Callable[[], None]:
    """Return what the device's thread does in a turn of this batcher: one batch, or nothing when others took all."""

    def turn() -> None:
        pieces, dropped = gather(batcher, time.monotonic())
        outcomes = [*dropped, *run(batcher, pieces)]
        if outcomes:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                outcomes[0].piece.job.result.get_loop().call_soon_threadsafe(deliver, batcher, outcomes)

    return turn


# ---- on the device's thread


def gather(batcher: Batcher, now: float) -> tuple[list[Piece], list[Outcome]]:
    """Return the pieces of the next batch, and the outcomes of those that are too late to begin with.

    Pieces are taken in order, as many as fit the largest bucket and leave each one its deadline.
    """
    taken: list[Piece] = []
    dropped: list[Outcome] = []
    rows, earliest = 0, float("inf")
    while batcher.waiting:
        piece = batcher.waiting[0]
        job = piece.job
        bucket = bucket_of(rows + piece.rows, batcher.largest)
        if job.result.done():
            batcher.waiting.popleft()
            continue
        due = float("inf") if job.deadline is None else job.deadline
        if now + _least_s(batcher, job, piece.rows) > due:
            dropped.append(Outcome(batcher.waiting.popleft(), late(), 0.0, 0))
            continue
        fits = rows + piece.rows <= batcher.largest and now + batcher.service_s[bucket] <= min(earliest, due)
        if taken and (not fits or job.singly or taken[0].job.singly):
            break
        taken.append(batcher.waiting.popleft())
        rows, earliest = rows + piece.rows, min(earliest, due)
    return taken, dropped


def run(batcher: Batcher, pieces: Sequence[Piece]) -> Iterator[Outcome]:
    """Yield the outcome of each piece. Where the batch fails, each is tried alone, so that one fails alone."""
    if not pieces:
        return
    started = time.monotonic()
    for piece in pieces:
        if not piece.place:
            piece.job.started = started
    try:
        yield from _together(batcher, pieces)
    except Exception as error:  # noqa: BLE001  whoever waits must hear of it
        if len(pieces) == 1:
            yield Outcome(pieces[0], error, time.monotonic() - started, 0)
            return
        for piece in pieces:
            yield from run(batcher, [piece])


def _together(batcher: Batcher, pieces: Sequence[Piece]) -> list[Outcome]:
    started = time.monotonic()
    if pieces[0].job.singly:
        (piece,) = pieces
        rows = range(piece.start, piece.stop)
        scores = concatenate([batcher.programs[1](take(piece.job.batch, slice(i, i + 1))) for i in rows])
        return [Outcome(piece, scores, time.monotonic() - started, 1)]
    ran = _run_parts(batcher, list(map(_part, pieces)), sum(piece.rows for piece in pieces))
    outcomes, start = [], 0
    for piece in pieces:
        outcomes.append(Outcome(piece, _rows(ran.scores, start, start + piece.rows), ran.seconds, ran.bucket))
        start += piece.rows
    return outcomes


def _part(piece: Piece) -> Batch:
    batch = piece.job.batch
    return batch if piece.rows == piece.job.rows else take(batch, slice(piece.start, piece.stop))


def _run_parts(batcher: Batcher, parts: Sequence[Batch], rows: int) -> Ran:
    """Return what the program of the bucket for `rows` gives for the rows of the parts, and padding after them."""
    started, bucket = time.monotonic(), bucket_of(rows, batcher.largest)
    whole = len(parts) == 1 and rows == bucket
    scores = batcher.programs[bucket](parts[0] if whole else _filled(batcher.hosts[bucket], parts))
    seconds = time.monotonic() - started
    _learn(batcher, bucket, seconds)
    return Ran(scores, seconds, bucket)


def _filled(host: Batch, parts: Sequence[Batch]) -> Batch:
    """Return the rows of the parts, then zeros as `pad_rows` has them, in the arrays kept for the bucket."""
    start = 0
    for part in parts:
        stop = start + batch_rows(part)
        for name, values in host.items():
            values[start:stop] = part[name]
        start = stop
    for values in host.values():
        values[start:] = 0
    return host


def _rows(scores: Scores, start: int, stop: int) -> Scores:
    return scores.rows(start, stop)._replace(outputs=scores.outputs)


# ---- on the event loop again


def deliver(batcher: Batcher, outcomes: Sequence[Outcome]) -> None:
    """Give each Job its own rows; a Job is done when its last piece is, or its first fails."""
    for outcome in outcomes:
        job = outcome.piece.job
        if job.result.done():
            continue
        if isinstance(outcome.scores, Exception):
            leave(batcher, job, outcome.scores)
            continue
        job.infer_s += outcome.seconds
        job.bucket = max(job.bucket, outcome.bucket)
        job.parts[outcome.piece.place] = outcome.scores
        done = [part for part in job.parts if part is not None]
        if len(done) == len(job.parts):
            batcher.rows_waiting -= job.rows
            job.result.set_result(done[0] if len(done) == 1 else concatenate(done))
    _tell(batcher, outcomes)


def _tell(batcher: Batcher, outcomes: Sequence[Outcome]) -> None:
    rows = sum(outcome.piece.rows for outcome in outcomes if outcome.bucket)
    if rows:
        batcher.observe(rows, max(outcome.bucket for outcome in outcomes))
