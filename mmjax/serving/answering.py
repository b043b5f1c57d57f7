"""Answering: Columns become Scores. What `/predict/*` and the Open Inference Protocol share; no HTTP library here."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mmjax.data.encode import encode
from mmjax.data.pipeline import batch_rows
from mmjax.data.unknown import Unknown, counts_by_column, unknown_cells, unknown_warnings
from mmjax.errors import DataError
from mmjax.schema import Batch, Columns
from mmjax.serving.batcher import Batcher, Job, leave, submit
from mmjax.serving.engine import Engine, Served
from mmjax.serving.image_bodies import image_place
from mmjax.serving.observe import Metrics
from mmjax.serving.wire import Refused
from mmjax.training.scoring import Scores

INLINE_CELLS = 512
"""Requests of at most so many cells are encoded on the event loop: a thread would cost more."""
WATCH_AFTER_S = 0.005
"""A request that takes longer is dropped when its client hangs up; shorter ones are not worth the watching."""
CLIENT_LEFT = 499
"""Nobody reads this status; it is nginx's word for a client that hung up."""
MOST_TIMEOUT_MS = 3_600_000

Gone = Callable[[], Awaitable[object]]
"""`gone()` returns when the client has hung up."""

T = TypeVar("T")


class Encoded(NamedTuple):
    """Rows of a matrix of numbers, encoded already (see `numeric_batch`)."""

    batch: Batch


class Answered(NamedTuple):
    """What a model says of the rows of a request, and where the time went."""

    scores: Scores
    queue_s: float
    """Waiting for the device."""
    decode_s: float
    """Reading the rows, encoding them, decoding images."""
    infer_s: float
    """The compiled calls with their transfers; those that rows of other requests shared count whole."""
    bucket: int
    """Rows of the largest compiled batch they went through."""
    warnings: tuple[str, ...] = ()
    """What the answers may suffer from, a line each."""


async def answer(
    engine: Engine,
    served: Served,
    rows: Columns | Encoded,
    *,
    request_id: str,
    decode_s: float = 0.0,
    deadline: float | None = None,
    deterministic: bool = False,
    gone: Gone | None = None,
) -> Answered:
    """Return what the model says of these rows, each row's answer in its place.

    `decode_s` is what was spent on reading them so far. `deadline` is a time of `time.monotonic`, for waiting and
    computing together. With `deterministic` each row goes alone through the bucket of one, so that its bits depend on
    nothing else. `gone()` returns when the client hangs up (see `client_gone`). Raises Refused: 400 for cells that are
    none, 422 for an answer that is not finite, 499 when the client left, 503 when the device fails or the model is not
    ready, 504 past the deadline.
    """
    batcher, started = _batcher(served), time.perf_counter()
    batch = rows.batch if isinstance(rows, Encoded) else await _batch(engine, served, rows)
    decode_s += time.perf_counter() - started
    job = submit(batcher, batch, deadline=deadline, deterministic=deterministic)
    scores = await _result(batcher, job, gone)
    queue_s, infer_s, bucket = job.started - job.arrived, job.infer_s, job.bucket
    refuse_non_finite(scores)
    metrics, label = engine.metrics, str(served)
    metrics.stage(label, "queue", queue_s)
    metrics.stage(label, "decode", decode_s)
    metrics.stage(label, "infer", infer_s)
    columns = None if isinstance(rows, Encoded) else rows
    unknown = unknown_in(served, columns, batch)
    count(metrics, served, columns, batch, scores, unknown)
    return Answered(scores, queue_s, decode_s, infer_s, bucket, unknown_warnings(unknown))


def unknown_in(served: Served, columns: Columns | None, batch: Batch) -> tuple[Unknown, ...]:
    """Return the cells of a category that training did not see; a matrix of numbers (without columns) has none."""
    return () if columns is None else unknown_cells(served.predictor.schema, columns, batch.get("category"))


async def _batch(engine: Engine, served: Served, columns: Columns) -> Batch:
    """Return the encoded columns; beside the event loop unless they are few."""
    if served.modality == "table" and sum(map(len, columns.values())) <= INLINE_CELLS:
        return encoded(served, columns)
    return await in_thread(engine, lambda: encoded(served, columns))


def _device_failed() -> Refused:
    told = "the device failed on these rows; try again, or ask without them"
    return Refused(503, "device-failed", told, retry_after_s=1)


def _batcher(served: Served) -> Batcher:
    if served.batcher is None:
        raise Refused(503, "not-ready", f"model: {served} is being compiled; try again", retry_after_s=1)
    return served.batcher


def client_gone(receive: Callable[[], Awaitable[Any]]) -> Gone:
    """Return what `answer` takes as `gone`, from the ASGI `receive` of a request whose body has been read."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    return gone


def deadline_of(engine: Engine, timeout_ms: str | None, received: float | None = None) -> float | None:
    """Return the deadline, by `time.monotonic`, of a request with this `X-Request-Timeout-Ms`; Refused when it is none.

    Without one it is the server's own, or None. It counts from when the request was `received`, or from now.
    """
    received = received or time.monotonic()
    if timeout_ms is None:
        return None if engine.deadline_s is None else received + engine.deadline_s
    whole = timeout_ms.isascii() and timeout_ms.isdecimal() and len(timeout_ms) < 10
    if not whole or not 1 <= int(timeout_ms) <= MOST_TIMEOUT_MS:
        raise Refused(
            400,
            "bad-timeout",
            f"X-Request-Timeout-Ms: expected whole milliseconds from 1 to {MOST_TIMEOUT_MS:,}, got '{timeout_ms[:80]}'",
        )
    return received + int(timeout_ms) / 1e3


async def in_thread(engine: Engine, work: Callable[[], T]) -> T:
    """Return `work()`, done beside the event loop."""
    return await asyncio.get_running_loop().run_in_executor(engine.decoders, work)


def encoded(served: Served, columns: Columns) -> Batch:
    """Return the Batch of columns; Refused (400) naming the cells, or images, that are none."""
    schema = served.predictor.schema
    try:
        return encode(schema, columns, place=partial(image_place, schema))
    except DataError as error:
        raise Refused(400, "bad-image" if served.modality == "image" else "bad-cell", error.problems) from error


async def _result(batcher: Batcher, job: Job, gone: Gone | None) -> Scores:
    """Return the Scores of a Job; when the caller is cancelled or its client leaves, the Job leaves the queue."""
    watching: list[asyncio.Task[None]] = []

    async def watch(gone: Gone) -> None:
        await gone()
        leave(batcher, job, Refused(CLIENT_LEFT, "client-left", "the client hung up before it was answered"))

    loop = job.result.get_loop()
    timer = gone and loop.call_later(WATCH_AFTER_S, lambda: watching.append(loop.create_task(watch(gone))))
    try:
        return await job.result
    except asyncio.CancelledError:
        leave(batcher, job)
        raise
    except Refused:
        raise
    except Exception as error:
        raise _device_failed() from error
    finally:
        if timer:
            timer.cancel()
        for task in watching:
            task.cancel()


def finite_rows(scores: Scores) -> np.ndarray | None:
    """Return which rows have an answer that is finite, bool[N]; None where all have."""
    finite = np.isfinite(scores.prediction if scores.probabilities is None else scores.probabilities)
    return None if finite.all() else finite.all(axis=-1)


def refuse_non_finite(scores: Scores) -> None:
    """Raise Refused (422) naming the rows whose answer is not finite."""
    if (finite := finite_rows(scores)) is None:
        return
    rows = (np.flatnonzero(~finite) + 1).tolist()
    told = "the model's answer is not finite; are cells far beyond those of training?"
    raise Refused(422, "non-finite-output", [f"row {row}: {told}" for row in rows[:20]])


# ---- figures


def count(
    metrics: Metrics,
    served: Served,
    columns: Columns | None,
    batch: Batch,
    scores: Scores,
    unknown: Sequence[Unknown],
) -> None:
    """Count what was asked, by column, and what was answered, by class. `columns` are None for a matrix of numbers."""
    label, schema = str(served), served.predictor.schema
    if served.predictor.schema.features:
        _count_cells(metrics, served, columns, batch, unknown)
    classes = schema.target.classes
    if scores.probabilities is None:
        return
    if schema.target.labels:
        for name, held in zip(classes, scores.prediction.sum(axis=0).tolist(), strict=True):
            if held:
                metrics.predicted(label, name, held)
        return
    if batch_rows(batch) == 1:
        metrics.predicted(label, classes[scores.prediction.item()], 1)
        return
    for index, count in enumerate(np.bincount(scores.prediction, minlength=len(classes)).tolist()):
        if count:
            metrics.predicted(label, classes[index], count)


def _count_cells(
    metrics: Metrics, served: Served, columns: Columns | None, batch: Batch, unknown: Sequence[Unknown]
) -> None:
    """Count cells that are missing, unknown or out of range, by column."""
    label, schema = str(served), served.predictor.schema
    numeric, category = batch.get("numeric"), batch.get("category")
    if numeric is not None and np.isnan(numeric).any():
        for name, count in zip(schema.numeric_features, np.isnan(numeric).sum(axis=0).tolist(), strict=True):
            column = name.removesuffix(".elapsed_days")
            if count and (columns is None or column in columns):
                metrics.cells(label, column, "missing", count)
    if columns is not None and category is not None and not category.all():
        by_column = counts_by_column(unknown)
        for column, count in zip(schema.category_columns, (category == 0).sum(axis=0).tolist(), strict=True):
            metrics.cells(label, column.name, "unknown", by_column[column.name])
            metrics.cells(label, column.name, "missing", count - by_column[column.name])
    for index, column in served.bounded:
        values = batch["numeric"][:, index] + np.float64(column.offset)
        low, high = (bound if bound is not None else np.nan for bound in (column.minimum, column.maximum))
        count = int(np.count_nonzero((values < low) | (values > high)))
        metrics.cells(label, column.name, "out_of_range", count)
