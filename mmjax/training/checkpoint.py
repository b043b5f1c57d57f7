"""Checkpoints: all that a run needs to go on, on disk with orbax, written beside the training.

    checkpoints/STEP/arrays/...     orbax: training state, sums of the epoch, best weights so far
    checkpoints/STEP/position.json  epoch, batch, history, early stopping
    checkpoints/STEP/sha256.json    our own digests: orbax restores most flipped bits in silence

A checkpoint is made under another name and renamed when all of it is on the disk; older ones go only then. So a crash
at any moment leaves a whole one, and what is not whole has no name that anything reads.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from mmjax.artifact.files import sync_folder, temporary_sibling, write_synced
from mmjax.config import Checkpoint
from mmjax.errors import DataError
from mmjax.training.event_types import Checkpointed
from mmjax.training.events import steps_done
from mmjax.training.program import Snapshot
from mmjax.training.state import Position, TrainState, eval_variables, on_host
from mmjax.training.steps import empty_totals
from mmjax.training.stopping import StopState

DIGESTS, POSITION, ARRAYS = "sha256.json", "position.json", "arrays"
FORMAT = 1
SPARE_BYTES, SPARE_ARRAY_BYTES = 128 << 10, 2 << 10
"""More than orbax's own files take, in all and for each array."""

Keep = Callable[[Snapshot], Iterator[Checkpointed]]


@contextlib.contextmanager
def checkpointer(
    folder: Path, settings: Checkpoint, *, ending: Callable[[], bool] = lambda: False, resumed: int | None = None
) -> Iterator[Keep]:
    """Yield what saves each Snapshot that is due, while training goes on; the block ends when the last is on disk.

    Due is the last Snapshot of a run, also of one that cannot go on; the one at hand when `ending()` says that the
    process is to end; and in between every so many seconds or epochs, as the settings say. `resumed` is a step whose
    checkpoint is there.
    DataError, at the next Snapshot or the end of the block, when the disk refuses.
    """
    if not settings.enabled:
        yield lambda snapshot: iter(())
        return
    _remove_leftovers(folder)
    with ThreadPoolExecutor(1, thread_name_prefix="checkpoint") as pool:
        saver = _Saver(folder, settings, ending, pool, known={resumed} if resumed is not None else set())
        yield saver.keep
        saver.wait()


class _Saver:
    """One save at a time in a thread; a class, for it holds what is going on."""

    def __init__(
        self,
        folder: Path,
        settings: Checkpoint,
        ending: Callable[[], bool],
        pool: ThreadPoolExecutor,
        known: set[int],
    ) -> None:
        self.folder, self.settings, self.ending, self.pool, self.known = folder, settings, ending, pool, known
        self.saved_at = time.monotonic()
        self.under_way: Future[Checkpointed] | None = None

    def keep(self, snapshot: Snapshot) -> Iterator[Checkpointed]:
        """Save the Snapshot if it is due; yield what has reached the disk since the last call."""
        if self.under_way is not None and self.under_way.done():
            yield self.wait()
        if not self._due(snapshot):
            return
        if self.under_way is not None:
            yield self.wait()
        step = steps_done(snapshot.state)
        self.saved_at = time.monotonic()
        if step not in self.known:
            self.known.add(step)
            arrays = _arrays(snapshot) if snapshot.own else on_host(_arrays(snapshot))
            position = _position_to_json(snapshot, arrays)
            self.under_way = self.pool.submit(self._save, step, arrays, position)
        if self.under_way is not None and self._final(snapshot):
            yield self.wait()

    def _save(self, step: int, arrays: list[Any], position: bytes) -> Checkpointed:
        """Save arrays that may be on the device still: they come from there while training goes on."""
        fetched = jax.device_get(arrays)
        arrays.clear()  # their memory on the device is free before the disk is done
        return save(self.folder, step, fetched, position, keep=self.settings.keep)

    def wait(self) -> Any:
        """Return what the save under way ends in, or None; DataError when the disk refused."""
        under_way, self.under_way = self.under_way, None
        return under_way.result() if under_way is not None else None

    def _final(self, snapshot: Snapshot) -> bool:
        return snapshot.position.over or snapshot.last or self.ending()

    def _due(self, snapshot: Snapshot) -> bool:
        position = snapshot.position
        if self._final(snapshot):
            return True
        if isinstance(self.settings.every_epochs, int):
            return position.batch == 0 and (position.epoch - 1) % self.settings.every_epochs == 0
        first = position.batch == 0 and position.epoch == 2  # something to come back to
        return first or time.monotonic() - self.saved_at >= self.settings.every_seconds


def save(folder: Path, step: int, arrays: Sequence[np.ndarray], position: bytes, *, keep: int) -> Checkpointed:
    """Write the checkpoint `folder/STEP`, then delete all but the newest `keep` up to it, and any beyond it.

    Raises DataError when the disk refuses; what was there before is there still.
    """
    path = folder.absolute() / str(step)
    temporary = temporary_sibling(path)
    try:
        temporary.mkdir(parents=True)
        _refuse_full(temporary, arrays)
        with _orbax_silent(), ocp.StandardCheckpointer() as saver:
            saver.save(temporary / ARRAYS, {f"{index:05d}": array for index, array in enumerate(arrays)})
        write_synced(temporary / POSITION, position)
        write_synced(temporary / DIGESTS, json.dumps(_digests(temporary), indent=1).encode())
        _sync(temporary)
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
        sync_folder(path.parent)
    except (OSError, ValueError) as error:  # orbax and tensorstore say ValueError where a disk is full
        advice = "free space, or begin anew with another training.checkpoint.path"
        told = f"cannot write the checkpoint: {_reason(error)}; {advice}; {_left(folder)}"
        raise DataError(f"{path}: {told}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    steps = steps_in(folder)
    for old in [*steps[steps.index(step) + keep :], *(newer for newer in steps if newer > step)]:
        shutil.rmtree(folder / str(old))
    return Checkpointed(step, str(path))


def steps_in(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in the folder, the newest first."""
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


class Loaded(NamedTuple):
    """The newest whole checkpoint, if there is one, and what was wrong with newer ones, a line each."""

    snapshot: Snapshot | None
    notes: tuple[str, ...]


def load_newest(folder: Path, like: TrainState) -> Loaded:
    """Return the newest checkpoint that is whole, with the structure, shapes and dtypes of `like`.

    A damaged one is passed over with a note. DataError when one is whole but of another network.
    """
    notes: list[str] = []
    for step in steps_in(folder):
        damaged = damages(folder / str(step))
        if not damaged:
            return Loaded(load(folder / str(step), like), tuple(notes))
        notes.append(f"checkpoint {folder / str(step)} is passed over: {'; '.join(damaged)}")
    return Loaded(None, tuple(notes))


def damages(path: Path) -> list[str]:
    """Return what is wrong with the files of a checkpoint; empty when they are those that were saved."""
    try:
        expected = json.loads((path / DIGESTS).read_bytes())
        found = _digests(path)
    except (OSError, ValueError) as error:
        return [f"{path / DIGESTS}: not readable: {error}"]
    if not isinstance(expected, dict):
        return [f"{path / DIGESTS}: no table of digests"]
    names = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    return [f"{name}: damaged: not the file that was saved" for name in names]


def load(path: Path, like: TrainState) -> Snapshot:
    """Return the Snapshot in an undamaged checkpoint, its arrays on the host; DataError when it does not fit `like`."""
    found = json.loads((path / POSITION).read_bytes())
    best = eval_variables(like) if found["best"] else None
    template = Snapshot(like, empty_totals(like.step.shape), best, _position_from_json(found["position"]))
    leaves, structure = jax.tree.flatten((template.state, template.totals, template.best))
    expected = [[list(leaf.shape), str(leaf.dtype)] for leaf in leaves]
    if found["format"] != FORMAT or found["leaves"] != expected:
        raise DataError(f"{path}: expected a checkpoint of this network, got another; name another run or start anew")
    with ocp.StandardCheckpointer() as saver:
        shapes = {f"{i:05d}": np.empty(leaf.shape, leaf.dtype) for i, leaf in enumerate(leaves)}
        arrays = saver.restore(path.absolute() / ARRAYS, shapes)
    state, totals, best = jax.tree.unflatten(structure, [arrays[name] for name in sorted(arrays)])
    return template._replace(state=state, totals=totals, best=best)


def _arrays(snapshot: Snapshot) -> list[Any]:
    return jax.tree.leaves((snapshot.state, snapshot.totals, snapshot.best))


def _position_to_json(snapshot: Snapshot, arrays: Sequence[Any]) -> bytes:
    """Return the host's part; floats come back as they were, NaN and infinities among them."""
    stop = snapshot.position.stop
    plain_stop = [np.asarray(value).tolist() for value in stop]  # of members: lists
    document = {
        "format": FORMAT,
        "best": snapshot.best is not None,
        "leaves": [[list(array.shape), str(array.dtype)] for array in arrays],
        "position": snapshot.position._replace(stop=plain_stop)._asdict(),  # pyright: ignore[reportArgumentType]
    }
    return json.dumps(document).encode()


def _position_from_json(found: dict[str, Any]) -> Position:
    types = (np.float32, np.int32, np.int32, np.bool_)
    stop = StopState(*(np.asarray(value, kind)[()] for value, kind in zip(found["stop"], types, strict=True)))
    return Position(**{**found, "stop": stop, "history": tuple(found["history"])})


def _refuse_full(folder: Path, arrays: Sequence[np.ndarray]) -> None:
    """Raise OSError where the disk cannot hold the arrays: orbax finds out too, but with a page of its own errors."""
    needed = sum(array.nbytes for array in arrays) + SPARE_BYTES + len(arrays) * SPARE_ARRAY_BYTES
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def _orbax_silent() -> Iterator[None]:
    """Keep orbax from printing a traceback of what it raises besides."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _reason(error: OSError | ValueError) -> str:
    """Return why the disk refused, in the system's words where they can be found."""
    code = re.search(r"os_error_code='(\d+)'", str(error))  # as tensorstore tells it
    number = int(code[1]) if code else error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number else str(error)


def _left(folder: Path) -> str:
    steps = steps_in(folder)
    return f"the checkpoint of step {steps[0]} is whole: the same command goes on from it" if steps else "none is left"


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed save left behind."""
    for path in folder.glob(".*.tmp") if folder.is_dir() else ():
        shutil.rmtree(path, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Wait until every file and folder under `folder` is on the disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(root, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(root))


def _digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file under the folder, by its path within."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != DIGESTS)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
