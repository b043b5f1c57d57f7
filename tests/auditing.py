"""Rows for tests of the audit: from columns as a CSV would give them, or from images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.config import Audit
from mmjax.data.audit import Rows, audit, hash_cells, perceptual_hashes
from mmjax.data.encode import encode, encode_label
from mmjax.data.infer import fit_vocabulary, infer_schema
from mmjax.data.labels import strata
from mmjax.data.prepared import Finding
from mmjax.data.split import Split, split_rows
from mmjax.data.table import read_table
from mmjax.schema import Columns, ImageSpec, Schema, Target


def text_columns(columns: Mapping[str, Sequence[Any] | np.ndarray]) -> Columns:
    """The columns as a table holds them: object arrays of str."""
    found = {}
    for name, values in columns.items():
        cells = np.empty(len(values), object)
        cells[:] = ["" if value != value else str(value) for value in values]
        found[name] = cells
    return found


def as_split(parts: np.ndarray) -> Split:
    """The split that an array of 0, 1, 2 means."""
    train, validation, test = (np.flatnonzero(parts == i) for i in range(3))
    return Split(train, validation, test, ())


def table_rows(
    columns: Columns,
    target: str | tuple[str, ...] = "y",
    *,
    parts: np.ndarray | None = None,
    seed: int = 0,
    **roles,
) -> Rows:
    """What the audit reads of a table whose first row stands on line 2; split at random unless `parts` says how."""
    columns = text_columns(columns)
    schema = infer_schema(columns, target_column=target, **roles)
    count = len(next(iter(columns.values())))
    if parts is None:
        labels = encode_label(schema, columns) if schema.target.classes else None
        strategy = "random" if labels is None else "stratified"
        labels = strata(labels) if labels is not None and schema.target.labels else labels
        split = split_rows(count, strategy=strategy, fractions=(0.7, 0.15, 0.15), seed=seed, labels=labels)
    else:
        split = as_split(parts)
    schema = fit_vocabulary(schema, {name: cells[split.train] for name, cells in columns.items()})
    batch = encode(schema, columns, label=True)
    row_keys = hash_cells(columns, [name for name in columns if name != schema.id_column])
    feature_keys = hash_cells(columns, [column.name for column in schema.features])
    names = columns[schema.id_column] if schema.id_column else np.arange(2, count + 2).astype(object)
    return Rows(schema, batch, split, names, row_keys, feature_keys)


def csv_rows(path: str, target: str, **roles) -> Rows:
    """What the audit reads of a CSV file."""
    table = read_table(path)
    rows = table_rows(table.columns, target, **roles)
    return rows if "id_column" in roles else rows._replace(names=table.lines.astype(object))


def image_rows(images: np.ndarray, labels: Sequence[int], parts: np.ndarray) -> Rows:
    """What the audit reads of images u8[N, H, W, 3] of two classes, named a0, a1 ..."""
    spec = ImageSpec(height_px=images.shape[1], width_px=images.shape[2])
    schema = Schema(target=Target(column="label", task="classification", classes=("cat", "dog")), image=spec)
    keys = np.array([hash(image.tobytes()) for image in images]).view(np.uint64)
    batch = {"image": images[:, None], "label": np.array(labels, np.int32)}
    names = np.array([f"a{i}" for i in range(len(images))], object)
    return Rows(schema, batch, as_split(parts), names, keys, keys, perceptual_hashes(images)[:, None])


def found(rows: Rows, check: str) -> list[Finding]:
    """The findings of one check, all with the default severity."""
    return [finding for finding in audit(rows, Audit()) if finding.check == check]


def thirds(count: int) -> np.ndarray:
    """A split of 0, 1, 2 in turns: 60 % train, 20 % validation, 20 % test."""
    return np.array([0, 0, 0, 1, 2], np.int8)[np.arange(count) % 5]
