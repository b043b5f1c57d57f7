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


def reload_models(engine: Engine, source: Source, tell: Tell) -> None:
    """Bring every model up to the version that its reference means now. In the keeper's thread.

    A model that cannot be loaded or proved leaves the one before it in place; `tell` hears of it, and it is counted.
    """
    for reference, served in list(engine.serving.items()):
        try:
            fresh = _fresh(engine, reference, served, source)
        except Stopped:
            return
        except Exception as error:  # noqa: BLE001  whatever fails: the model at hand goes on answering
            engine.metrics.reloaded(reference, "failed")
            tell("reload-failed", {"reference": reference, "serving": str(served), "error": str(error)[:2000]})
            continue
        if fresh is not None:
            _swap(engine, reference, served, fresh)
            tell("reloaded", {"reference": reference, "serving": str(fresh), "before": str(served)})


def changed(engine: Engine, source: Source) -> bool:
    """Return whether a reference means another bundle than the one that is served, as far as one can read that."""
    for reference, served in list(engine.serving.items()):
        with contextlib.suppress(BundleError, OSError):
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
        with contextlib.suppress(BundleError, OSError):
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
        raise BundleError(f"{reference}: expected a model that is not served yet, got {fresh}, which is")
    return warmed(engine, fresh)


def _swap(engine: Engine, reference: str, before: Served, fresh: Served) -> None:
    """Let requests from now on meet the fresh model; those that met the one before keep it until they are answered."""
    engine.serving[reference] = fresh
    engine.metrics.retired(before.name.name, before.name.version, before.predictor.digest)
    engine.metrics.served(fresh.name.name, fresh.name.version, fresh.predictor.digest)
    engine.metrics.reloaded(reference, "done")
