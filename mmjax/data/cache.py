"""The encoded cache: arrays on disk, made once for a key, then memory-mapped. What streamed training reads.

An entry is a folder `KEY/` of one file for each array (`NAME.bin`, its bytes in C order), `facts.json` from whoever
built it, and `entry.json` with dtypes, shapes and sha256. It is written beside as `KEY.*.tmp` and renamed when whole;
`KEY.lock` lets one process build while others wait. Nothing is synced to the disk: the digests, checked at each
opening, tell a power cut from a whole entry.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mmjax.backend import cache_home
from mmjax.config import Cache
from mmjax.data.fingerprint import BLOCK_BYTES, close_digest
from mmjax.data.loading import in_units
from mmjax.errors import DataError
from mmjax.schema import Batch

CACHE_FORMAT = 2
GIB = 1 << 30

Tell = Callable[[str], None]
"""Takes a line for the user, at once."""


class NoCacheFolder(DataError):
    """The folder of the cache cannot be written to: where loading is `auto`, data stay in memory instead."""


class Cached(NamedTuple):
    """An entry of the cache, opened and found undamaged."""

    path: Path
    key: str
    batch: Batch
    """Each array as written, read-only and mapped from its file; empty ones are in memory."""
    facts: dict[str, Any]
    """What the builder returned, after a journey through JSON."""
    digests: dict[str, str]
    """`fingerprint.array_digest` of each array."""
    bytes: int
    """Size of all arrays."""
    note: str
    """A line for the user: place, size, and whether it was made or found."""


def open_or_build(
    settings: Cache,
    key: Mapping[str, Any],
    build: Callable[["CacheWriter"], dict[str, Any]],
    tell: Tell | None = None,
) -> Cached:
    """Return the entry of `key` (JSON), which `build` writes and returns facts (JSON) of unless it is there and whole.

    `tell` hears at once of waiting for another process, and of a damaged entry that is made anew. Raises
    NoCacheFolder, DataError when the disk is full or `settings.max_gib` is reached, and whatever `build` raises;
    nothing half-written is left. A killed process leaves a `*.tmp`, which the next build removes.
    """
    tell = tell or (lambda _line: None)
    home = _home(settings)
    path = home / hashlib.sha256(json.dumps([CACHE_FORMAT, key], sort_keys=True).encode()).hexdigest()[:32]
    with _locked(path, tell):
        try:
            return _open(path, "found there; nothing is read or decoded again")
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            tell(f"cache: {path} is damaged ({error}); removed, and made again")
            shutil.rmtree(path, ignore_errors=True)
        _remove_leftovers(path)
        _build(path, settings.max_gib, build)
        return _open(path, "made now")


class CacheWriter:
    """Appends rows to the files of an entry. The arrays are never in memory as a whole."""

    def __init__(self, folder: Path, max_gib: float) -> None:
        self.folder = folder
        """Where the entry is made: a builder may have files of its own there, and removes them when it is done."""
        self._max_gib = max_gib
        self._files: dict[str, BinaryIO] = {}
        self._digests: dict[str, hashlib._Hash] = {}
        self._shapes: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
        self._rows: dict[str, int] = {}
        self.bytes = 0
        """Written so far."""
        self.expected = 0
        """Announced by `expect`."""

    def expect(self, total_bytes: int) -> None:
        """Raise DataError when `total_bytes` will not fit: by `max_gib`, or on the disk. Spares a long, vain build."""
        self.expected = total_bytes
        self._refuse_over(total_bytes)
        free = shutil.disk_usage(self.folder).free
        if total_bytes > free:
            raise _full(self.folder.parent, total_bytes, f"{free:,}")

    def append(self, batch: Batch) -> None:
        """Append the rows of every array; ValueError when dtype or row shape is not that of the first call."""
        self._refuse_over(self.bytes + sum(values.nbytes for values in batch.values()))
        for name, values in batch.items():
            kind = (values.dtype, values.shape[1:])
            if self._shapes.setdefault(name, kind) != kind:
                raise ValueError(f"cache: expected rows of {self._shapes[name]} in '{name}', got {kind}")
            data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
            with told(self.folder.parent, self):
                if name not in self._files:
                    self._files[name] = (self.folder / f"{name}.bin").open("xb")
                    self._digests[name], self._rows[name] = hashlib.sha256(), 0
                self._files[name].write(data)
            self._digests[name].update(data)
            self._rows[name] += len(values)
            self.bytes += len(data)

    def written(self) -> Batch:
        """Return every array appended so far, read-only and mapped from its file."""
        found = {}
        for name, file in self._files.items():
            with told(self.folder.parent, self):
                file.flush()
            dtype, row = self._shapes[name]
            found[name] = _mapped(self.folder / f"{name}.bin", _Stored(dtype, (self._rows[name], *row)))
        return found

    def close(self) -> dict[str, dict[str, Any]]:
        """Return {name: dtype, shape, sha256} of the arrays, their files closed."""
        found = {}
        for name, file in self._files.items():
            with told(self.folder.parent, self):
                file.close()
            dtype, row = self._shapes[name]
            shape = (self._rows[name], *row)
            found[name] = {
                "dtype": dtype.str,
                "shape": shape,
                "sha256": close_digest(self._digests[name], dtype, shape),
            }
        self._files = {}
        return found

    def abandon(self) -> None:
        """Close the files whatever they hold: what is left in their buffers may not fit on the disk."""
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()

    def _refuse_over(self, total_bytes: int) -> None:
        if total_bytes > self._max_gib * GIB:
            raise DataError(
                f"data.cache.max_gib: expected at most {self._max_gib:g} GiB of encoded rows, "
                f"got {total_bytes / GIB:.3g} GiB or more; raise it, or choose smaller images or fewer columns"
            )


def _home(settings: Cache) -> Path:
    """Return the folder of all entries, made if need be."""
    try:
        home = Path(settings.path) if settings.path else cache_home() / "data"
    except RuntimeError as error:
        raise NoCacheFolder(
            f"data.cache.path: expected a folder, got no home to put one in ({error}); name it"
        ) from error
    with told(home):
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
    return home


@contextlib.contextmanager
def _locked(path: Path, tell: Tell) -> Iterator[None]:
    """Hold the lock of an entry, waiting while another process holds it; the system frees it when a process dies."""
    with contextlib.ExitStack() as stack:
        with told(path.parent):
            file = stack.enter_context(path.with_suffix(".lock").open("ab"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tell(f"cache: waiting for another process that makes or checks {path}")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_leftovers(path: Path) -> None:
    """Remove what builds left behind that were killed: of this entry, and of others whose locks are free."""
    for leftover in path.parent.glob("*.*.tmp"):
        lock = path.with_name(leftover.name.split(".")[0] + ".lock")
        if lock == path.with_suffix(".lock"):
            shutil.rmtree(leftover, ignore_errors=True)
        elif lock.exists():
            with lock.open("ab") as file, contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover, ignore_errors=True)


def _build(path: Path, max_gib: float, build: Callable[[CacheWriter], dict[str, Any]]) -> None:
    """Write the entry at `path`, whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    writer = CacheWriter(temporary, max_gib)
    try:
        with told(path.parent, writer):
            temporary.mkdir(mode=0o700)
        facts = json.dumps(build(writer)).encode()
        entry = {"format": CACHE_FORMAT, "arrays": writer.close(), "facts": hashlib.sha256(facts).hexdigest()}
        with told(path.parent, writer):
            (temporary / "facts.json").write_bytes(facts)
            (temporary / "entry.json").write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")
            temporary.rename(path)
    finally:
        writer.abandon()
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def told(home: Path, writer: CacheWriter | None = None) -> Iterator[None]:
    """Turn what the system says about writing to `home` into a DataError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            wanted = writer.expected if writer else 0
            raise _full(home, wanted, f"a full disk after {writer.bytes if writer else 0:,}") from error
        raise NoCacheFolder(
            f"data.cache.path: expected a folder to write encoded rows to, got {home}: {error.strerror or error}; "
            "name another, or set data.loading: resident"
        ) from error


def _full(home: Path, needed: int, got: str) -> DataError:
    """Return the error for a disk without room for `needed` bytes (0 where nobody knew)."""
    wanted = f"{needed:,} bytes" if needed else "enough bytes"
    return DataError(
        f"{home}: expected room for {wanted} of encoded rows, got {got}; "
        "set data.cache.path to a larger disk, or data.loading: resident"
    )


def _open(path: Path, how: str) -> Cached:
    """Return the entry at `path`. FileNotFoundError when there is none, ValueError and its like when it is damaged."""
    if not path.is_dir():
        raise FileNotFoundError(path)
    try:
        entry = json.loads((path / "entry.json").read_bytes())
        facts = (path / "facts.json").read_bytes()
        arrays = {name: _Stored(np.dtype(a["dtype"]), tuple(a["shape"])) for name, a in entry["arrays"].items()}
        digests = {name: str(a["sha256"]) for name, a in entry["arrays"].items()}
        if hashlib.sha256(facts).hexdigest() != entry["facts"]:
            raise ValueError("facts.json is not as written")
        for name, stored in arrays.items():
            _verify(path / f"{name}.bin", stored, digests[name])
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename} is missing") from error
    batch = {name: _mapped(path / f"{name}.bin", stored) for name, stored in arrays.items()}
    total = sum(stored.bytes for stored in arrays.values())
    note = f"cache: {in_units(total)} at {path}, {how}"
    return Cached(path, path.name, batch, json.loads(facts), digests, total, note)


class _Stored(NamedTuple):
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


def _verify(path: Path, stored: _Stored, expected: str) -> None:
    """Raise ValueError unless the file holds what was written. It is read, not mapped: no page of it stays with us."""
    digest, block = hashlib.sha256(), memoryview(bytearray(BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size != stored.bytes:
            raise ValueError(f"{path.name} has {size} bytes instead of {stored.bytes}")
        while count := file.readinto(block):
            digest.update(block[:count])
    if close_digest(digest, stored.dtype, stored.shape) != expected:
        raise ValueError(f"{path.name} is not as written")


def _mapped(path: Path, stored: _Stored) -> np.ndarray:
    if not stored.bytes:  # an empty file cannot be mapped
        empty = np.empty(stored.shape, stored.dtype)
        empty.flags.writeable = False
        return empty
    return np.memmap(path, stored.dtype, "r", shape=stored.shape)
