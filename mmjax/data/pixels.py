"""All images of a data set, each file read and decoded once: into memory, or into the cache that is streamed.

Beside the pixels stand what an audit asks for: a key of each file's content, and a hash of what it looks like.
"""

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from msgspec import UnsetType

from mmjax.config import Cache
from mmjax.data.audit_images import FREQUENCIES, perceptual_hashes
from mmjax.data.cache import CacheWriter, Tell, open_or_build
from mmjax.data.decode import ImageInput, decode_plain, decoder_versions, default_workers, shrink
from mmjax.data.idx import find_idx
from mmjax.data.image_bytes import read_image_file
from mmjax.errors import DataError
from mmjax.schema import Batch, ImageSpec

HASH_WORDS = FREQUENCIES**2 // 64
HASHED_PX = 64
"""Perceptual hashes are of images averaged down to this: they ask for 16 frequencies."""
PIXELS_FORMAT = 2
"""To be raised when the same file and ImageSpec become other pixels, keys or hashes than before."""
BLOCK_BYTES = 32 << 20
"""Two blocks of pixels are in memory at a time, besides what is kept."""
TASK = 32
"""Images a thread takes at once: a task for each tiny image costs more than the image."""
TELL_S = 10.0
"""Seconds between two lines about how far decoding is."""


Source = ImageInput | None
"""None is an image that is missing."""


class Block(NamedTuple):
    """Successive images, decoded."""

    images: np.ndarray
    """u8[n, H, W, 3]; zeros where an image is bad or missing."""
    contents: np.ndarray
    """u64[n]: a key of the bytes of the file (or of the array); equal for copies, 0 where an image is missing."""
    hashes: np.ndarray
    """u64[n, 4]: `audit_images.perceptual_hashes`, of images no larger than HASHED_PX."""
    faults: list[tuple[int, str]]
    """(index within the block, reason) of each that cannot be decoded."""


class Pixels(NamedTuple):
    """The rows whose I images can all be decoded, or are missing: M of those asked for, in their order."""

    images: np.ndarray
    """u8[M, I, H, W, 3], in memory or mapped from the cache."""
    contents: np.ndarray
    """u64[M, I], `Block.contents`."""
    hashes: np.ndarray
    """u64[M, I, 4], `Block.hashes`."""
    faults: list[tuple[int, str]]
    """(index among the sources, reason) of each image that cannot be decoded; its row is left out."""
    digests: dict[str, str]
    """`array_digest` of `image` where it is known already."""
    notes: tuple[str, ...]
    """Where the cache is."""


def decode_resident(spec: ImageSpec, sources: Sequence[Source], tell: Tell | None = None) -> Pixels:
    """Return the Pixels of the sources (paths or arrays), those of a row side by side, in memory.

    A row has as many images as `spec` has columns.
    """
    whole, count = _empty(spec, len(sources) // len(spec.columns)), 0

    def keep(rows: Batch) -> None:
        nonlocal count
        for name, values in rows.items():
            whole[name][count : count + len(values)] = values
        count += len(rows["image"])

    faults = _decode_into(keep, spec, sources, tell)
    image, content, likeness = (whole[name][:count] for name in ("image", "content", "hash"))
    return Pixels(image, content, likeness, faults, {}, ())


def decode_streamed(
    spec: ImageSpec, sources: Sequence[Source], key: str, settings: Cache, tell: Tell | None = None
) -> Pixels:
    """Return the Pixels of the sources mapped from the cache, where they are decoded only if `key` is not there.

    `key` must change whenever a source does: `key_of_files`. Raises as `cache.open_or_build`.
    """

    def build(writer: CacheWriter) -> dict[str, Any]:
        rows = len(sources) // len(spec.columns)
        writer.expect(sum(values.nbytes for values in _empty(spec, rows).values()))
        return {"faults": _decode_into(writer.append, spec, sources, tell)}

    full_key = {
        "pixels": PIXELS_FORMAT,
        "spec": [len(spec.columns), spec.height_px, spec.width_px, spec.resize, spec.filter, *_share(spec)],
        "decoder": decoder_versions(),
        "sources": key,
    }
    found = open_or_build(settings, full_key, build, tell)
    faults = [(index, reason) for index, reason in found.facts["faults"]]
    batch = _empty(spec, 0) | found.batch  # the cache knows no array where every image is bad
    return Pixels(batch["image"], batch["content"], batch["hash"], faults, found.digests, (found.note,))


def _empty(spec: ImageSpec, count: int) -> Batch:
    """Return arrays for `count` rows: memory is taken only as they are filled."""
    each = len(spec.columns)
    return {
        "image": np.empty((count, each, spec.height_px, spec.width_px, 3), np.uint8),
        "content": np.empty((count, each), np.uint64),
        "hash": np.empty((count, each, HASH_WORDS), np.uint64),
    }


def _share(spec: ImageSpec) -> list[float]:
    return [] if isinstance(spec.crop_share, UnsetType) else [spec.crop_share]


def encoded_bytes(spec: ImageSpec) -> int:
    """Return the size of one image in memory or in the cache."""
    return spec.height_px * spec.width_px * 3


def key_of_files(paths: Sequence[str]) -> str:
    """Return a sha256 of every path and what changes with its file; no file is opened.

    Size and time of writing do not tell all: images unpacked again may have both, and a file that could not be read
    for its permissions keeps them when it can be. The system alone sets the inode and the time of its last change.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            found = os.stat(path)
            state = f"{found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
        except (OSError, ValueError):
            state = "none"
        place = os.path.abspath(path) if path else ""  # a missing image is nowhere, wherever the process runs
        digest.update(f"{place}\0{state}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def key_of_sources(folder: str, sources: Sequence[Source]) -> str:
    """Return `key_of_files` of what the images are read from: themselves, or the idx files in `folder`.

    A missing image is a path that names nothing.
    """
    if sources and isinstance(sources[0], np.ndarray):
        pairs = find_idx(folder).values()
        return key_of_files([os.path.join(folder, name) for pair in pairs for name in pair if name])
    return key_of_files([os.fspath(source or "") for source in sources if not isinstance(source, bytes | np.ndarray)])


def decode_blocks(
    spec: ImageSpec, sources: Sequence[Source], *, workers: int | None = None
) -> Generator[Block, None, None]:
    """Yield the sources decoded in blocks of about BLOCK_BYTES; while one is used the next is being made, in threads.

    A block holds whole rows. `workers` threads, by default one for each core.
    """
    workers, each = workers or default_workers(), len(spec.columns)
    size = -(-max(TASK * workers, BLOCK_BYTES // encoded_bytes(spec)) // each) * each
    waiting: deque[tuple[Block, list[Future[list[tuple[int, str]]]]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for first in range(0, len(sources), size):
            waiting.append(_begin(pool, spec, sources[first : first + size]))
            if len(waiting) == 2:
                yield _finish(*waiting.popleft())
        while waiting:
            yield _finish(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(pool: ThreadPoolExecutor, spec: ImageSpec, sources: Sequence[Source]):
    """Return a Block that the pool is filling, and the tasks that do, each returning its faults."""
    count = len(sources)
    images = np.zeros((count, spec.height_px, spec.width_px, 3), np.uint8)
    block = Block(images, np.zeros(count, np.uint64), np.zeros((count, HASH_WORDS), np.uint64), [])
    ranges = [range(first, min(first + TASK, count)) for first in range(0, count, TASK)]
    return block, [pool.submit(_fill, block, spec, sources, rows) for rows in ranges]


def _finish(block: Block, tasks: list[Future[list[tuple[int, str]]]]) -> Block:
    return block._replace(faults=[fault for task in tasks for fault in task.result()])


def _fill(block: Block, spec: ImageSpec, sources: Sequence[Source], rows: range) -> list[tuple[int, str]]:
    """Decode these images into the block; return the faults."""
    good, faults = [], []
    for row in rows:
        source = sources[row]
        if source is None:
            continue
        try:
            data = source if isinstance(source, bytes | np.ndarray) else read_image_file(source)
            block.contents[row] = content_key(data)
            block.images[row] = decode_plain(data, spec)
            good.append(row)
        except DataError as error:
            faults.append((row, str(error)))
    if good:
        block.hashes[good] = perceptual_hashes(np.stack([shrink(block.images[row], HASHED_PX) for row in good]))
    return faults


def content_key(data: bytes | np.ndarray) -> int:
    """Return the first 64 bits of the sha256 of a file's bytes, or of an array's shape and bytes."""
    digest = hashlib.sha256()
    if isinstance(data, np.ndarray):
        digest.update(f"{data.dtype.str} {data.shape}".encode())
    digest.update(np.ascontiguousarray(data) if isinstance(data, np.ndarray) else data)
    return int.from_bytes(digest.digest()[:8], "little")


def _decode_into(
    keep: Callable[[Batch], None], spec: ImageSpec, sources: Sequence[Source], tell: Tell | None
) -> list[tuple[int, str]]:
    """Hand the rows on whose images are good, block by block; return (index, reason) of the bad images."""
    faults: list[tuple[int, str]] = []
    first, told, each = 0, time.monotonic(), len(spec.columns)
    for block in decode_blocks(spec, sources):
        good = np.ones(len(block.images) // each, bool)
        good[[index // each for index, _ in block.faults]] = False
        if good.any():
            arrays = (values.reshape(len(good), each, *values.shape[1:]) for values in block[:3])
            image, content, likeness = (values if good.all() else values[good] for values in arrays)
            keep({"image": image, "content": content, "hash": likeness})
        faults += [(first + index, reason) for index, reason in block.faults]
        first += len(block.images)
        if tell is not None and time.monotonic() - told > TELL_S:
            told = time.monotonic()
            tell(f"images: {first:,} of {len(sources):,} decoded")
    return faults
