"""The engine: models in memory, one thread that owns the device, and the bound on what may wait for it.

Litestar is not known here. Later work gathers requests into batches between `admitted` and `infer`.
"""

import asyncio
import contextlib
import functools
import os
import re
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import numpy as np

from mmjax.artifact.bundle import load_bundle
from mmjax.artifact.files import plain
from mmjax.artifact.models import locate_model
from mmjax.artifact.predictor import LARGEST_BUCKET, Predictor, proven_predictor
from mmjax.backend import precompiled
from mmjax.config import Config
from mmjax.data.encode import encode
from mmjax.data.pipeline import batch_rows, pad_rows
from mmjax.errors import ConfigError
from mmjax.schema import Batch, Schema
from mmjax.serving.wire import MAX_IMAGES, ModelName, Refused
from mmjax.training.scoring import Forward, Scores, score

Modality = Literal["table", "image"]
Phase = Literal["starting", "ready", "stopping"]

T = TypeVar("T")


class Served(NamedTuple):
    """A model that is served."""

    name: ModelName
    predictor: Predictor
    modality: Modality
    largest: int
    """Rows of its largest compiled batch, a power of two."""
    description: dict[str, Any]
    """What `/models/NAME` tells, JSON-ready."""

    def __str__(self) -> str:
        return self.name.name if self.name.version is None else f"{self.name.name}:{self.name.version}"


class Engine(NamedTuple):
    """All that requests share. Its sets and events are filled by `warm` and `stop` alone."""

    models: tuple[Served, ...]
    warmed: dict[ModelName, Predictor]
    """Predictors whose states are on the device and whose every bucket is compiled."""
    device: ThreadPoolExecutor
    """One thread, the only one that runs compiled programs."""
    decoders: ThreadPoolExecutor
    """Threads for bodies too large for the event loop, and for images."""
    slots: asyncio.Semaphore
    """Requests that may be decoded, wait and run at a time."""
    ready: threading.Event
    stopping: threading.Event


class Answer(NamedTuple):
    """Scores, and how long the device took for them."""

    scores: Scores
    seconds: float


def load_models(references: Sequence[str], registry: str | Path) -> tuple[Served, ...]:
    """Return the models that references name, digests and golden rows checked.

    Raises BundleError for one that is absent or damaged, ConfigError for one that is named twice.
    """
    models = tuple(_load(reference, registry) for reference in references)
    names = [model.name for model in models]
    if doubled := [str(model) for i, model in enumerate(models) if model.name in names[:i]]:
        raise ConfigError(f"--model: expected each model once, got {', '.join(doubled)} again; remove one")
    return models


def _load(reference: str, registry: str | Path) -> Served:
    located = locate_model(reference, registry=registry)
    bundle = load_bundle(located.path)
    predictor, contents = proven_predictor(bundle, where=str(located.path)), bundle.contents
    schema, name = predictor.schema, ModelName(predictor.config.name, located.version)
    modality: Modality = "table" if schema.image is None else "image"
    description = {
        "name": name.name,
        "version": name.version,
        "digest": predictor.digest,
        "modality": modality,
        "task": schema.target.task,
        "target": schema.target.column,
        "classes": schema.target.classes,
        "features": [column.name for column in schema.features],
        "schema": schema,
        "metrics": contents.metrics,
        "card": public_card(contents.card, predictor.config),
    }
    largest = LARGEST_BUCKET if modality == "table" else MAX_IMAGES
    return Served(name, predictor, modality, largest, plain(description))


RECIPE = re.compile(r"^## How to make it again$.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
"""The section of a card that repeats the config, with places on the machine that trained."""


def public_card(card: str, config: Config) -> str:
    """Return the card as it may leave over HTTP: without the config, and of the data's path only the last part."""
    source = config.data.tabular or config.data.image
    card = RECIPE.sub("", card)
    return card.replace(source.path, Path(source.path).name) if source is not None and source.path else card


def make_engine(models: tuple[Served, ...], *, queue: int) -> Engine:
    """Return an Engine that does not answer before `warm` has run; at most `queue` requests are in it at a time."""
    threads = min(4, os.cpu_count() or 1)
    return Engine(
        models=models,
        warmed={},
        device=ThreadPoolExecutor(1, "device"),
        decoders=ThreadPoolExecutor(threads, "decode"),
        slots=asyncio.Semaphore(queue),
        ready=threading.Event(),
        stopping=threading.Event(),
    )


def warm(engine: Engine) -> None:
    """Compile and run every bucket of every model, then be ready. Runs on the device's thread."""
    for model in engine.models:
        predictor = model.predictor
        states = jax.device_put(predictor.states)
        programs: dict[int, Callable[..., Any]] = {}
        for bucket in buckets(model.largest):
            if engine.stopping.is_set():
                return
            batch = blank_batch(predictor.schema, bucket)
            programs[bucket] = precompiled(predictor.forward, *states, batch).run
            jax.block_until_ready(programs[bucket](*states, batch))
        engine.warmed[model.name] = predictor._replace(states=states, forward=_by_bucket(programs))
    engine.ready.set()


def buckets(largest: int) -> tuple[int, ...]:
    """Return the sizes of compiled batches.

    >>> buckets(8)
    (1, 2, 4, 8)
    """
    return tuple(1 << power for power in range(largest.bit_length()))


def blank_batch(schema: Schema, rows: int) -> Batch:
    """Return a host Batch of the shapes and types that `encode` makes: one row with everything missing, padded."""
    names = [column.name for column in schema.features] + list(schema.image.columns if schema.image else ())
    return pad_rows(encode(schema, {name: np.array([None], dtype=object) for name in names}), rows)


def _by_bucket(programs: dict[int, Callable[..., Any]]) -> Forward:
    """Return a Forward that knows these sizes and no other: nothing compiles in traffic."""

    def forward(variables: Any, transform_state: Any, output_state: Any, batch: Batch) -> Any:
        return programs[batch_rows(batch)](variables, transform_state, output_state, batch)

    return forward


@contextlib.asynccontextmanager
async def admitted(engine: Engine) -> AsyncIterator[None]:
    """Hold one of the engine's slots; Refused (503) when there is none, or when models are still being compiled."""
    if not engine.ready.is_set():
        raise Refused(503, "not-ready", "the models are being compiled; try again", retry_after_s=1)
    if engine.slots.locked():
        raise Refused(503, "overloaded", "as many requests are waiting as may wait; try again", retry_after_s=1)
    async with engine.slots:
        yield


async def in_thread(engine: Engine, work: Callable[[], T]) -> T:
    """Return `work()`, done beside the event loop."""
    return await asyncio.get_running_loop().run_in_executor(engine.decoders, work)


async def infer(engine: Engine, model: Served, batch: Batch) -> Answer:
    """Return the Answer for an encoded host Batch. A caller that is cancelled while it waits leaves the queue."""
    work = functools.partial(_answer, engine.warmed[model.name], batch, largest=model.largest)
    return await asyncio.get_running_loop().run_in_executor(engine.device, work)


def _answer(predictor: Predictor, batch: Batch, *, largest: int) -> Answer:
    started = time.perf_counter()
    scores = score(predictor.forward, predictor.states, batch, largest=largest)
    return Answer(scores, time.perf_counter() - started)


def stop(engine: Engine) -> None:
    """End the threads after what they are doing; what only waits is dropped."""
    engine.stopping.set()
    engine.ready.clear()
    for executor in (engine.decoders, engine.device):
        executor.shutdown(wait=True, cancel_futures=True)


def phase(engine: Engine) -> Phase:
    """Return what the engine is doing."""
    if engine.stopping.is_set():
        return "stopping"
    return "ready" if engine.ready.is_set() else "starting"


def select(engine: Engine, name: str | None, version: int | None, modality: Modality | None = None) -> Served:
    """Return the one model that is meant; Refused with the models there are when none or several could be.

    404 for a name or version that is not served, 400 for a model of the other modality, or when it is not said which.
    """
    served = [model for model in engine.models if modality in (None, model.modality)]
    there = f"there are {', '.join(map(str, served))}" if served else f"no {modality} model is served"
    names = {model.name.name for model in served}
    if name is None and len(names) != 1:
        raise Refused(400, "which-model", f"model: expected the name of one, got none; {there}")
    found = [m for m in served if name in (None, m.name.name) and version in (None, m.name.version)]
    if len(found) == 1:
        return found[0]
    wanted = f"{(name or names.pop())[:100]}{'' if version is None else f':{version}'}"
    if found:
        raise Refused(400, "which-model", f"version: expected one of {wanted}, got none; {there}")
    if name is not None and name not in names and any(name == model.name.name for model in engine.models):
        raise Refused(400, "wrong-model", f"model: expected a {modality} model, got '{wanted}'; {there}")
    raise Refused(404, "no-such-model", f"model: no '{wanted}' is served; {there}")


def system() -> dict[str, Any]:
    """Return memory and disk in bytes, and the device; None where this system does not say."""
    page = os.sysconf("SC_PAGE_SIZE")
    resident = None
    with contextlib.suppress(OSError):
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * page
    disk = shutil.disk_usage(".")
    devices = jax.devices()
    return {
        "memory": {"process_bytes": resident, "total_bytes": os.sysconf("SC_PHYS_PAGES") * page},
        "disk": {"free_bytes": disk.free, "total_bytes": disk.total},
        "device": {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)},
    }
