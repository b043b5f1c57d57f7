"""The engine: models in memory, compiled for the device that one thread owns, and the bound on what is in the server.

Litestar is not known here. `warm` makes every model ready beside the event loop; `mmjax.serving.answering` answers.
"""

import contextlib
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from mmjax.analysis.report import meaningful
from mmjax.artifact.bundle import Golden, load_bundle
from mmjax.artifact.files import plain
from mmjax.artifact.models import locate_model
from mmjax.artifact.predictor import (
    Predictor,
    abstaining_predictor,
    added_answers,
    bundle_predictor,
    expected_of,
    golden_columns,
    golden_tolerance,
    largest_difference,
)
from mmjax.backend import platform, precompiled
from mmjax.config import Config
from mmjax.data.encode import encode
from mmjax.data.pipeline import batch_rows, pad_rows, take
from mmjax.errors import BundleError, ConfigError
from mmjax.parts import States, member_count
from mmjax.schema import Batch, Column, Modality, Schema
from mmjax.serving.batcher import Batcher, Program, expected_s
from mmjax.serving.device import ASIDE, COMPUTE, Device, on_device, start_device, step_back, stop_device
from mmjax.serving.observe import Metrics
from mmjax.serving.wire import MAX_IMAGES, ModelName, Refused
from mmjax.training.scoring import Forward, Scores

Phase = Literal["starting", "ready", "stopping"]

NO_OUTPUTS = np.empty((0, 0), np.float32)
"""In the place of raw outputs, which nobody asks a server for."""
MAX_BATCH = 1024
"""Rows that go through a model together at most; of images MAX_IMAGES."""
TIMED, LONG_S = 5, 0.02
"""A program is timed so often when it is warm, but once where it takes longer than that, in seconds."""
RETRY_MOST_S = 30
"""Longest time that a client is told to wait."""


class Served(NamedTuple):
    """A model that is served. A reload puts another in its place; requests keep the one they have."""

    name: ModelName
    predictor: Predictor
    modality: Modality
    largest: int
    """Rows of its largest compiled batch, a power of two."""
    description: dict[str, Any]
    """What `/models/NAME` tells, JSON-ready."""
    golden: Golden | None = None
    """Rows with known answers, which the compiled programs must give."""
    batcher: Batcher | None = None
    """Its queue and its compiled programs; None before it is warm."""
    bounded: tuple[tuple[int, Column], ...] = ()
    """Columns whose schema has bounds, with their place in `Batch["numeric"]`."""

    def __str__(self) -> str:
        return self.name.name if self.name.version is None else f"{self.name.name}:{self.name.version}"


class Places:
    """How many requests are in the server, of how many that may be. Only the event loop touches it."""

    __slots__ = ("most", "taken")

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0


class Engine(NamedTuple):
    """All that requests share."""

    serving: dict[str, Served]
    """Reference, as given at the start (`iris@production`), to the model that it means now."""
    device: Device
    decoders: ThreadPoolExecutor
    """Threads for bodies too large for the event loop, and for images."""
    keeper: ThreadPoolExecutor
    """One thread that loads, compiles and proves models, beside the event loop and the device."""
    places: Places
    deadline_s: float | None
    """How long a request may take that does not say so itself; None for ever."""
    metrics: Metrics
    ready: threading.Event
    draining: threading.Event
    stopping: threading.Event

    @property
    def models(self) -> tuple[Served, ...]:
        """The models that are served now."""
        return tuple(self.serving.values())


def load_models(
    references: Sequence[str],
    registry: str | Path,
    *,
    max_batch: int | None = None,
    abstain_below: float | None = None,
) -> dict[str, Served]:
    """Return, by reference, the models that references name, their digests checked.

    Raises BundleError for one that is absent or damaged, ConfigError for one that is named twice, and for classifiers
    that would never abstain below `abstain_below`.
    """
    models = {
        reference: load_served(reference, registry, max_batch=max_batch, abstain_below=abstain_below)
        for reference in references
    }
    names = [model.name for model in models.values()]
    doubled = [str(model) for i, model in enumerate(models.values()) if model.name in names[:i]]
    if doubled := doubled or [name for i, name in enumerate(references) if name in references[:i]]:
        raise ConfigError(f"--model: expected each model once, got {', '.join(doubled)} again; remove one")
    return models


def load_served(
    reference: str, registry: str | Path, *, max_batch: int | None = None, abstain_below: float | None = None
) -> Served:
    """Return the model that a reference means now, its digest checked; BundleError when it is absent or damaged.

    A classifier abstains below the probability `abstain_below`, else as it was trained.
    """
    located = locate_model(reference, registry=registry)
    bundle = load_bundle(located.path)
    predictor, contents = bundle_predictor(bundle), bundle.contents
    if predictor.schema.target.classes:
        predictor = abstaining_predictor(predictor, abstain_below, where="--abstain-below")
    schema, name = predictor.schema, ModelName(predictor.config.name, located.version)
    modality = schema.modality
    told_schema = plain(schema)
    for column in told_schema["columns"]:
        column["kind"] = "target" if column["name"] in schema.target.columns else column["kind"]
    description = {
        "name": name.name,
        "version": name.version,
        "digest": predictor.digest,
        "modality": modality,
        "task": schema.target.task,
        "target": schema.target.column,
        "classes": schema.target.classes,
        "class_values": schema.target.values,
        "features": [column.name for column in schema.features],
        "uncertainty": member_count(predictor.config) > 1,
        "schema": told_schema,
        "metrics": meaningful(contents.metrics, contents.report),
        "card": public_card(contents.card, predictor.config),
    }
    if added := added_answers(predictor):
        description["answers"] = added
    images = len(schema.image.columns) if schema.image else 0
    largest = min(max_batch or MAX_BATCH, max(1, MAX_IMAGES // images) if images else MAX_BATCH)
    largest = 1 << (largest.bit_length() - 1)
    bounded = tuple((i, c) for i, c in enumerate(schema.of_kind("numeric")) if (c.minimum, c.maximum) != (None, None))
    return Served(name, predictor, modality, largest, plain(description), contents.golden, bounded=bounded)


RECIPE = re.compile(r"^## How to make it again$.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
"""The section of a card that repeats the config, with places on the machine that trained."""


def public_card(card: str, config: Config) -> str:
    """Return the card as it may leave over HTTP: without the config, and of the data's path only the last part."""
    source = config.data.tabular or config.data.image
    card = RECIPE.sub("", card)
    return card.replace(source.path, Path(source.path).name) if source is not None and source.path else card


def make_engine(models: Mapping[str, Served], *, queue: int, deadline_s: float | None = None) -> Engine:
    """Return an Engine that does not answer before `warm` has run; at most `queue` requests are in it at a time."""
    threads = min(4, os.cpu_count() or 1)
    return Engine(
        serving=dict(models),
        device=start_device(),
        decoders=ThreadPoolExecutor(threads, "decode", step_back, (COMPUTE,)),
        keeper=ThreadPoolExecutor(1, "keeper", step_back, (ASIDE,)),
        places=Places(queue),
        deadline_s=deadline_s,
        metrics=Metrics(),
        ready=threading.Event(),
        draining=threading.Event(),
        stopping=threading.Event(),
    )


# ---- warming


class Stopped(Exception):
    """The engine was stopped while a model was being made ready."""


def warm(engine: Engine, tell: Callable[[str], None] = lambda line: None) -> None:
    """Compile, run and prove every bucket of every model, then be ready. Not on the event loop: it takes seconds.

    `tell` hears a line when one is. Raises BundleError when a model does not give its golden answers.
    """
    with contextlib.suppress(Stopped):
        for reference, model in engine.serving.items():
            started = time.perf_counter()
            served = warmed(engine, model)
            engine.serving[reference] = served
            engine.metrics.served(served.name.name, served.name.version, served.predictor.digest)
            tell(f"{served} ready in {time.perf_counter() - started:.1f} s, {len(buckets(served.largest))} programs")
        engine.ready.set()


def warmed(engine: Engine, model: Served) -> Served:
    """Return the model with its compiled programs, which have given its golden answers; BundleError when they do not.

    The programs run on the device's thread, between batches. Raises Stopped when the engine is stopped meanwhile.
    """
    predictor, label = model.predictor, str(model)
    states = on_device(engine.device, lambda: jax.block_until_ready(jax.device_put(predictor.states)))
    blank = blank_batch(predictor.schema, 1)
    rows = blank if model.golden is None else encode(predictor.schema, golden_columns(model.golden))
    programs: dict[int, Program] = {}
    service_s: dict[int, float] = {}
    for bucket in buckets(model.largest):
        if engine.stopping.is_set():
            raise Stopped
        programs[bucket] = compile_bucket(predictor.forward, states, pad_rows(blank, bucket))
        engine.metrics.compiled(label)
        few = min(bucket, batch_rows(rows))
        batch = pad_rows(take(rows, slice(0, few)), bucket)
        scores, service_s[bucket] = on_device(
            engine.device, lambda bucket=bucket, batch=batch: _timed(programs[bucket], batch)
        )
        _prove(model, scores, few, bucket)
    batcher = Batcher(
        engine.device,
        programs,
        blank,
        service_s,
        observe=lambda rows, bucket: engine.metrics.batch(label, rows, bucket),
    )
    return model._replace(predictor=predictor._replace(states=states), batcher=batcher)


def compile_bucket(forward: Forward, states: States, blank: Batch) -> Program:
    """Return the forward pass compiled for as many rows as `blank` has; it refuses any other shape."""
    executable, on_gpu = precompiled(forward, *states, blank).run, platform() != "cpu"

    def program(batch: Batch) -> Scores:
        _, found = executable(*states, batch)
        if on_gpu:
            for values in found:
                if values is not None:
                    values.copy_to_host_async()
        return Scores(NO_OUTPUTS, *found).map(np.asarray)

    return program


def _timed(program: Program, batch: Batch) -> tuple[Scores, float]:
    """Return the Scores, and the seconds of the quickest of a few more runs: the first touches memory anew."""
    scores, seconds = program(batch), float("inf")
    for _ in range(TIMED):
        started = time.perf_counter()
        program(batch)
        seconds = min(seconds, time.perf_counter() - started)
        if seconds > LONG_S:
            break
    return scores, seconds


def _prove(model: Served, scores: Scores, rows: int, bucket: int) -> None:
    """Raise BundleError unless the first rows are the golden answers."""
    if model.golden is None:
        return
    tolerance = golden_tolerance(model.golden, model.predictor.config, platform())
    got = expected_of(scores)
    for name, expected in model.golden.expected.items():
        difference = largest_difference(expected[:rows], got[name][:rows])
        if difference > tolerance:
            raise BundleError(
                f"{model}: golden rows: expected {name} within {tolerance:g} of what was saved, got a difference of "
                f"{difference:g} in a batch of {bucket}; the arrays or this machine's numerics changed"
            )


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


# ---- being asked


def no_room(engine: Engine) -> Refused | None:
    """Return why no request can be taken now: models are being compiled, or every place is taken. None where it can."""
    if not engine.ready.is_set():
        return Refused(503, "not-ready", "the models are being compiled; try again", retry_after_s=1)
    return None if engine.places.taken < engine.places.most else overloaded(engine)


def overloaded(engine: Engine) -> Refused:
    """Return the refusal of a request for which there is no place."""
    told = f"{engine.places.most} requests are in the server, as many as may be; try again later"
    return Refused(503, "overloaded", told, retry_after_s=retry_after_s(engine))


@contextlib.contextmanager
def admitted(engine: Engine) -> Iterator[None]:
    """Hold one of the places in the server; Refused (503) when there is none, or while models are being compiled.

    On the event loop, around all that a request does once its body is here.
    """
    if (refused := no_room(engine)) is not None:
        raise refused
    engine.places.taken += 1
    try:
        yield
    finally:
        engine.places.taken -= 1


def waiting(engine: Engine) -> int:
    """Return how many requests, or pieces of large ones, wait for the device."""
    batchers = (model.batcher for model in engine.models)
    return sum(len(batcher.waiting) + len(batcher.gathered) for batcher in batchers if batcher is not None)


def retry_after_s(engine: Engine) -> int:
    """Return the whole seconds after which what is in the server now will be answered, as far as one can tell."""
    batchers = (model.batcher for model in engine.models)
    seconds = sum(expected_s(batcher, 0) for batcher in batchers if batcher is not None)
    return min(max(math.ceil(seconds), 1), RETRY_MOST_S)


def drain(engine: Engine) -> None:
    """Be ready no more, though requests are answered still."""
    engine.draining.set()


def stop(engine: Engine) -> None:
    """End the threads after what they are doing; what only waits for a decoder is dropped."""
    engine.stopping.set()
    engine.draining.set()
    engine.ready.clear()
    engine.keeper.shutdown(wait=True, cancel_futures=True)
    engine.decoders.shutdown(wait=True, cancel_futures=True)
    stop_device(engine.device)


def phase(engine: Engine) -> Phase:
    """Return what the engine is doing."""
    if engine.draining.is_set():
        return "stopping"
    return "ready" if engine.ready.is_set() else "starting"


def select(engine: Engine, name: str | None, version: int | None, modality: Modality | None = None) -> Served:
    """Return the one model that is meant; Refused with the models there are when none or several could be.

    `name` is NAME, NAME:VERSION or a reference as given at the start (`iris@production`). 404 for a name or version
    that is not served, 400 for a model of another modality, or when it is not said which.
    """
    served = [model for model in engine.models if modality in (None, model.modality)]
    names = {model.name.name for model in served}
    if name is None and len(names) != 1:
        wrong = "expected the name of one, got none" if names else f"no {modality} model is served"
        raise Refused(400, "which-model", f"model: {wrong}; {there_are(engine)}")
    found = [m for m in served if name in (None, m.name.name) and version in (None, m.name.version)]
    if len(found) == 1:
        return found[0]
    if found:
        raise Refused(400, "which-model", f"version: expected one of {name}, got none; {there_are(engine)}")
    return _by_reference(engine, names.pop() if name is None else name, version, modality)


def _by_reference(engine: Engine, name: str, version: int | None, modality: Modality | None) -> Served:
    """Return the model that NAME:VERSION or a reference means; Refused when it is none."""
    called = [model for key, model in engine.serving.items() if name in (key, str(model), model.name.name)]
    found = [m for m in called if version in (None, m.name.version) and modality in (None, m.modality)]
    if found:
        return found[0]
    wanted = f"{name[:100]}{'' if version is None else f':{version}'}"
    if called and all(modality not in (None, model.modality) for model in called):
        kind = "an image model" if modality == "image" else f"a {modality} model"
        door = "; ask it at POST /predict" if any(model.modality == "multimodal" for model in called) else ""
        raise Refused(400, "wrong-model", f"model: expected {kind}, got '{wanted}'{door}; {there_are(engine)}")
    raise Refused(404, "no-such-model", f"model: no '{wanted}' is served; {there_are(engine)}")


def there_are(engine: Engine) -> str:
    """Return which models there are, in words."""
    return f"there are {', '.join(f'{model} ({model.modality})' for model in engine.models)}"


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
