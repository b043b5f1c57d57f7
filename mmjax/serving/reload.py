"""Reloading: a model is loaded, compiled and proved aside; then one reference is swapped. A failure changes nothing."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mmjax.artifact.manifest import read_manifest
from mmjax.artifact.models import locate_model
from mmjax.errors import BundleError
from mmjax.serving.engine import Engine, Served, Stopped, load_served, warmed

Tell = Callable[[str, dict[str, Any]], None]
"""Hears the name of an event and the facts."""


class Source(NamedTuple):
    """Where models come from."""

    registry: str
    max_batch: int
    abstain_below: float | None = None


class Taken(BundleError):
    """The version that a reference means now is served by another reference still."""


def reload_models(engine: Engine, source: Source, tell: Tell) -> None:
    """Bring every model up to the version that its reference means now. In the keeper's thread.

    A model that cannot be loaded or proved leaves the one before it in place; `tell` hears of it, and it is counted.
    One that takes over the version of another (a canary becomes production) waits until that one has moved on.
    """
    references = tuple(engine.serving)
    with contextlib.suppress(Stopped):
        while references:
            waiting = {key: taken for key in references if (taken := _bring_up(engine, key, source, tell)) is not None}
            if len(waiting) == len(references):  # each for another
                for reference, taken in waiting.items():
                    _failed(engine, reference, taken, tell)
                return
            references = tuple(waiting)


def _bring_up(engine: Engine, reference: str, source: Source, tell: Tell) -> Taken | None:
    """Bring one model up to the version that is meant now; return what it has to wait for, if so."""
    served = engine.serving[reference]
    try:
        fresh = _fresh(engine, reference, served, source)
    except Stopped:
        raise
    except Taken as taken:
        return taken
    except Exception as error:  # noqa: BLE001  whatever fails: the model at hand goes on answering
        _failed(engine, reference, error, tell)
        return None
    if fresh is not None:
        _swap(engine, reference, served, fresh)
        say(tell, "reloaded", {"reference": reference, "serving": str(fresh), "before": str(served)})
    return None


def _failed(engine: Engine, reference: str, error: Exception, tell: Tell) -> None:
    engine.metrics.reloaded(reference, "failed")
    facts = {"reference": reference, "serving": str(engine.serving[reference]), "error": str(error)[:2000]}
    say(tell, "reload-failed", facts)


def say(tell: Tell, event: str, facts: dict[str, Any]) -> None:
    """Tell of an event; whether anybody reads that changes nothing."""
    with contextlib.suppress(OSError):
        tell(event, facts)


def changed(engine: Engine, source: Source) -> bool:
    """Return whether a reference means another bundle than the one that is served, as far as one can read that."""
    for reference, served in list(engine.serving.items()):
        with contextlib.suppress(Exception):  # whatever is wrong with the registry: the watch goes on
            if not _same(served, reference, source):
                return True
    return False


async def watch(engine: Engine, source: Source, tell: Tell, *, every_s: float) -> None:
    """Look for other versions again and again, until cancelled. What failed once is tried again when it changes."""
    loop, failed = asyncio.get_running_loop(), ""
    while True:
        await asyncio.sleep(every_s)
        if engine.ready.is_set():
            failed = await loop.run_in_executor(engine.keeper, _look, engine, source, tell, failed)


def _look(engine: Engine, source: Source, tell: Tell, failed: str) -> str:
    """Reload what has changed, unless that `failed` before; return what references mean if it failed, else nothing."""
    meant = _meant(engine, source)
    if meant == failed or not changed(engine, source):
        return failed if meant == failed else ""
    reload_models(engine, source, tell)
    return meant if changed(engine, source) and meant == _meant(engine, source) else ""


def _meant(engine: Engine, source: Source) -> str:
    """Return what the references mean now, in words that change when it does."""
    found = []
    for reference in engine.serving:
        with contextlib.suppress(Exception):
            located = locate_model(reference, registry=source.registry)
            found.append(f"{located.path} {read_manifest(Path(located.path)).digest}")
    return "\n".join(found)


def _same(served: Served, reference: str, source: Source) -> bool:
    located = locate_model(reference, registry=source.registry)
    return served.name.version == located.version and served.predictor.digest == read_manifest(located.path).digest


def _fresh(engine: Engine, reference: str, served: Served, source: Source) -> Served | None:
    """Return the model that the reference means now, ready to answer; None when it is served already."""
    if _same(served, reference, source):
        return None
    fresh = load_served(reference, source.registry, max_batch=source.max_batch, abstain_below=source.abstain_below)
    if any(fresh.name == other.name for key, other in engine.serving.items() if key != reference):
        raise Taken(f"{reference}: expected a model that is not served yet, got {fresh}, which is")
    return warmed(engine, fresh)


def _swap(engine: Engine, reference: str, before: Served, fresh: Served) -> None:
    """Let requests from now on meet the fresh model; those that met the one before keep it until they are answered."""
    engine.serving[reference] = fresh
    engine.metrics.retired(before.name.name, before.name.version, before.predictor.digest)
    engine.metrics.served(fresh.name.name, fresh.name.version, fresh.predictor.digest)
    engine.metrics.reloaded(reference, "done")
