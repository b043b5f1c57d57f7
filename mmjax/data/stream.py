"""Rows of the encoded cache, read ahead in the order of training: grain over windows of many batches.

A window is one element to grain, as its Python costs more than a row does (46,000 single rows a second against millions
in windows). Within a window rows are read in the order they lie on the disk and laid down in the order asked for.
"""

import mmap
from collections.abc import Generator
from typing import Any

import numpy as np

from mmjax.schema import Batch

WINDOW_BYTES = 32 << 20
"""About so much is read, and put on the device, at once; the next window is put there while one is computed with."""
AHEAD = 2
"""Windows read ahead, each by a thread of its own."""
BLOCK_BYTES = 1 << 20
"""Rows are copied in pieces that stay in the processor's cache."""


def window_steps(batch: Batch, batch_size: int) -> int:
    """Return how many batches of `batch_size` rows make a window of about WINDOW_BYTES; at least 1."""
    row_bytes = sum(values[:1].nbytes for values in batch.values())
    return max(1, WINDOW_BYTES // max(1, row_bytes * batch_size))


def windows(
    batch: Batch, rows: np.ndarray, order: np.ndarray, *, steps: int, start: int
) -> Generator[Batch, None, None]:
    """Yield `batch[name][rows[order[s : s + steps]]]` as [steps * B, ...] for s = start, start + steps, ... below S.

    `rows` are indices into the batch, `order i32[S, B]` indices into `rows`. The last window is filled up by repeating
    its rows. Windows are read ahead in threads, which end when the iterator is closed (`contextlib.closing`), or done.
    What is read of a mapped array does not stay in this process.
    """
    import grain  # here: it takes 0.7 s, and only streaming needs it

    def read(window: int) -> Batch:
        first = start + window * steps
        indices = np.resize(order[first : first + steps], steps * order.shape[1])
        return gather(batch, rows[indices])

    count = max(0, -(-(len(order) - start) // steps))
    options = grain.ReadOptions(num_threads=AHEAD, prefetch_buffer_size=AHEAD)
    reader: Any = iter(grain.MapDataset.range(count).map(read).to_iter_dataset(options))
    try:
        yield from reader
    finally:
        reader.close()


def gather(batch: Batch, rows: np.ndarray) -> Batch:
    """Return the given rows of every array, in memory; pages of mapped files are read in order and let go again."""
    at = np.argsort(rows, kind="stable")
    ascending = rows[at]
    found = {}
    for name, values in batch.items():
        out = np.empty((len(rows), *values.shape[1:]), values.dtype)
        size = max(1, BLOCK_BYTES // max(1, values[:1].nbytes))
        for first in range(0, len(rows), size):
            out[at[first : first + size]] = values[ascending[first : first + size]]
        if isinstance(values.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            values.base.madvise(mmap.MADV_DONTNEED)  # they stay in the system's page cache
        found[name] = out
    return found
