"""Checkpoints: the last training state and the best variables, on disk with orbax.

Each save is a new folder that orbax moves into place when it is whole; only then is the one before it deleted, so a
crash at any moment leaves a good one. orbax restores most flipped bits in silence, so our own digests lie in it.
"""

import contextlib
import hashlib
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import orbax.checkpoint as ocp

from mmjax.artifact.files import write_json_atomic
from mmjax.config import Checkpoint
from mmjax.errors import DataError
from mmjax.training.event_types import Checkpointed
from mmjax.training.events import Snapshot

DIGESTS = "sha256.json"
SAVE_EVERY_S = 30.0
"""Without `every_epochs`: seconds between two saves of the last state."""


def checkpointer(folder: Path, settings: Checkpoint) -> Callable[[Snapshot], Iterator[Checkpointed]]:
    """Return a keeper that saves `last/STEP` and `best/STEP` under `folder` when a Snapshot is due."""
    saved_at = time.monotonic() - SAVE_EVERY_S  # the first epoch is saved: something to come back to

    def due(snapshot: Snapshot) -> bool:
        if isinstance(settings.every_epochs, int):
            return snapshot.epoch % settings.every_epochs == 0
        return time.monotonic() - saved_at >= SAVE_EVERY_S

    def keep(snapshot: Snapshot) -> Iterator[Checkpointed]:
        nonlocal saved_at
        if not settings.enabled or not (snapshot.last or due(snapshot)):
            return
        saved_at = time.monotonic()
        path = save_tree(folder / "last" / str(snapshot.step), snapshot.state._asdict())
        yield Checkpointed(snapshot.step, str(path), best=False)
        if settings.save_best and snapshot.best:
            path = save_tree(folder / "best" / str(snapshot.step), snapshot.best)
            yield Checkpointed(snapshot.step, str(path), best=True)

    return keep


def save_tree(path: Path, tree: Any) -> Path:
    """Save a pytree of arrays as the folder `path`, then delete its older siblings; return `path`.

    Raises DataError when the disk refuses.
    """
    path = path.absolute()
    try:
        with interrupts_held():
            path.parent.mkdir(parents=True, exist_ok=True)
            with ocp.StandardCheckpointer() as saver:
                saver.save(path, tree, force=True)
            write_json_atomic(path / DIGESTS, _digests(path))
    except OSError as error:
        raise DataError(
            f"{path}: cannot write the checkpoint: {error}; free space or set training.checkpoint.path"
        ) from error
    for sibling in path.parent.iterdir():
        if sibling.name.isdigit() and sibling != path:
            shutil.rmtree(sibling)
    return path


def load_tree(path: Path, like: Any) -> Any:
    """Return the pytree saved in the folder `path`, with the structure, shapes and dtypes of `like` (None: as saved).

    Raises DataError when a file is not the one that was saved.
    """
    path = path.absolute()
    try:
        expected = json.loads((path / DIGESTS).read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a whole checkpoint with {DIGESTS} in it; use another one") from error
    found = _digests(path)
    damaged = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if damaged:
        raise DataError([f"{path / name}: damaged: not the file that was saved; use another one" for name in damaged])
    with ocp.StandardCheckpointer() as saver:
        return saver.restore(path, like)


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold back the first SIGINT or SIGTERM until the block ends: orbax's threads must not outlive the interpreter."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []

    def hold(number: int, _frame: FrameType | None) -> None:
        if held:
            raise KeyboardInterrupt
        held.append(number)

    before = {number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    for number in held:
        signal.raise_signal(number)


def _digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file under the folder, by its path within."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != DIGESTS)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
