"""Prepared rows in an entry of the cache: the batch and whatever is as long as it as arrays, the rest as facts."""

from typing import Any

import numpy as np

from mmjax.data.cache import Cached, CacheWriter
from mmjax.data.fingerprint import fingerprint
from mmjax.data.prepared import Finding, Prepared, Quarantined
from mmjax.data.split import PARTS, Split
from mmjax.schema import schema_from_json, schema_to_json

_NAMES, _SIZES, _FOLDS = "names", "names.sizes", "split.folds"
BLOCK_ROWS = 100_000


def save(prepared: Prepared, writer: CacheWriter) -> dict[str, Any]:
    """Return the facts (JSON) of prepared rows whose batch is written already, and append the other arrays."""
    for part, rows in zip(PARTS, prepared.split[:3], strict=True):
        writer.append({f"split.{part}": rows})
    if prepared.split.folds is not None:
        writer.append({_FOLDS: prepared.split.folds})
    if prepared.names.dtype.kind == "i":
        writer.append({_NAMES: prepared.names})
    else:
        _save_texts(prepared.names, writer)
    return {
        "schema": schema_to_json(prepared.schema).decode(),
        "batch": sorted(prepared.batch),
        "golden": {name: cells.tolist() for name, cells in prepared.golden.items()},
        "split_notes": prepared.split.notes,
        "notes": prepared.notes,
        "quarantined": prepared.quarantined,
        "findings": prepared.findings,
    }


def _save_texts(names: np.ndarray, writer: CacheWriter) -> None:
    for first in range(0, len(names), BLOCK_ROWS):
        texts = [name.encode() for name in names[first : first + BLOCK_ROWS].tolist()]
        writer.append({_NAMES: np.frombuffer(b"".join(texts), np.uint8), _SIZES: np.array(list(map(len, texts)))})


def restore(cached: Cached) -> Prepared:
    """Return the prepared rows of an entry, their batch mapped from it."""
    facts = cached.facts
    schema = schema_from_json(facts["schema"].encode(), str(cached.path))
    batch = {name: cached.batch[name] for name in facts["batch"]}
    train, validation, test = (np.array(cached.batch[f"split.{part}"]) for part in PARTS)
    folds = np.array(cached.batch[_FOLDS]) if _FOLDS in cached.batch else None
    split = Split(train, validation, test, tuple(facts["split_notes"]), folds)
    golden = {name: _objects(cells) for name, cells in facts["golden"].items()}
    return Prepared(
        schema,
        _names(cached),
        split,
        batch,
        golden,
        tuple(facts["notes"]),
        tuple(Quarantined(*found) for found in facts["quarantined"]),
        tuple(_finding(*found) for found in facts["findings"]),
        streamed=True,
        fingerprint=fingerprint(schema, split, batch, golden, cached.digests),
    )


def _finding(
    check: str, severity: str, what: str, found: int, examples: list[str], advice: str, leaked: list[int]
) -> Finding:
    return Finding(check, severity, what, found, tuple(examples), advice, tuple(leaked))


def _names(cached: Cached) -> np.ndarray:
    data = cached.batch[_NAMES]
    if _SIZES not in cached.batch:
        return np.array(data)
    names = np.empty(len(cached.batch[_SIZES]), np.dtypes.StringDType())
    at = 0
    for first in range(0, len(names), BLOCK_ROWS):
        ends = (at + np.cumsum(cached.batch[_SIZES][first : first + BLOCK_ROWS])).tolist()
        starts = [at, *ends[:-1]]
        text = data[at : ends[-1]].tobytes()
        names[first : first + len(ends)] = [
            text[start - at : end - at].decode() for start, end in zip(starts, ends, strict=True)
        ]
        at = ends[-1]
    return names


def _objects(cells: list[str]) -> np.ndarray:
    array = np.empty(len(cells), object)
    array[:] = cells
    return array
