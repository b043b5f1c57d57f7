"""The order of rows: one host function for resident and streamed data alike."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mmjax.schema import Batch


def permutation(seed: int, epoch: int, n: int, member: int = 0) -> np.ndarray:
    """Return the order of `n` rows in `epoch`, i32[n]; the same on every machine for equal arguments.

    Members of an ensemble, numbered from 0, have orders of their own.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed | member << 32, epoch]))
    return generator.permutation(n).astype(np.int32)


def epoch_batches(seed: int, epoch: int, n: int, batch_size: int, member: int = 0) -> np.ndarray:
    """Return row indices of every full batch of `epoch`, i32[n // batch_size, batch_size].

    The `n % batch_size` rows left over differ from epoch to epoch, so every row is trained on.
    """
    steps = n // batch_size
    return permutation(seed, epoch, n, member)[: steps * batch_size].reshape(steps, batch_size)


def take(batch: Batch, rows: np.ndarray | slice) -> Batch:
    """Return the given rows of every array of a host Batch."""
    return {name: values[rows] for name, values in batch.items()}


@dataclass(frozen=True)
class Picked:
    """Rows of an array on disk, read when a slice of them is asked for."""

    values: np.ndarray
    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the picked rows."""
        return (len(self.rows), *self.values.shape[1:])

    def __len__(self) -> int:
        """Return the number of rows, not of fields."""
        return len(self.rows)

    def __getitem__(self, at: slice) -> np.ndarray:
        """Return the rows of a slice, copied into memory."""
        return self.values[self.rows[at]]


def batch_rows(batch: Batch) -> int:
    """Return the number of rows of a Batch."""
    return len(next(iter(batch.values())))


def pad_rows(batch: Batch, rows: int) -> Batch:
    """Return a host Batch of `rows` rows; the added ones are zeros, which no other row can see."""
    missing = rows - batch_rows(batch)
    return (
        {name: np.pad(v, [(0, missing)] + [(0, 0)] * (v.ndim - 1)) for name, v in batch.items()} if missing else batch
    )


def padded_slices(n: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of successive slices of at most `size` rows."""
    for start in range(0, n, size):
        yield start, min(start + size, n)
