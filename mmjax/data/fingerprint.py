"""A digest of prepared data: what tells a resumed run that it goes on with the very same rows."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.data.split import Split
from mmjax.schema import Batch, Columns, Schema, schema_to_json

BLOCK_BYTES = 8 << 20
"""So much of an array is read at a time."""


def array_digest(values: np.ndarray) -> str:
    """Return the sha256 of an array's bytes, then dtype and shape; read in blocks: one mapped from disk stays there."""
    digest = hashlib.sha256()
    rows = max(1, BLOCK_BYTES // max(1, values[:1].nbytes))
    for start in range(0, len(values), rows):
        digest.update(np.ascontiguousarray(values[start : start + rows]))
    return close_digest(digest, values.dtype, values.shape)


def close_digest(digest: "hashlib._Hash", dtype: np.dtype, shape: tuple[int, ...]) -> str:
    """Return the `array_digest` of an array whose bytes are in `digest`, which knew nothing of its length before."""
    digest.update(f"{dtype.str} {shape}".encode())
    return digest.hexdigest()


def fingerprint(
    schema: Schema, split: Split, batch: Batch, golden: Columns, digests: Mapping[str, str] | None = None
) -> str:
    """Return the sha256 of everything that decides a run but its config.

    `digests` are those of the batch's arrays where they are known already, by name.
    """
    known = digests or {}
    digest = hashlib.sha256(schema_to_json(schema))
    for name, values in sorted(batch.items()):
        digest.update(f"{name} {known.get(name) or array_digest(values)}".encode())
    for rows in split[:3]:
        digest.update(array_digest(rows).encode())
    if split.folds is not None:
        digest.update(array_digest(split.folds).encode())
    for name, cells in sorted(golden.items()):
        digest.update(json.dumps([name, *map(_plain, cells)]).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _plain(cell: Any) -> Any:
    return array_digest(cell) if isinstance(cell, np.ndarray) else str(cell)
