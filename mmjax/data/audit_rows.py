"""Rows: what every check of the audit reads, and how it samples, groups and names them."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mmjax.data.cells import texts
from mmjax.data.prepared import Finding
from mmjax.data.split import PARTS, Split
from mmjax.schema import Batch, Columns, Schema

SHOWN = 12
"""Most examples of a finding."""
MEMBERS = 4
"""Most rows named of one group of copies."""
BLOCK_ROWS = 1 << 18
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Rows(NamedTuple):
    """What the audit reads of the N rows that were kept. Arrays may be mapped from disk: no batch array is copied."""

    schema: Schema
    """With vocabularies and offsets fitted."""
    batch: Batch
    split: Split
    names: np.ndarray
    """[N]: whole numbers are shown as lines of the file, anything else (ids, paths) as it is."""
    row_keys: np.ndarray
    """u64[N]: equal for rows equal in every column but the declared `id_column`; images: equal for the same bytes."""
    feature_keys: np.ndarray
    """u64[N]: equal for rows equal in every feature column; images: equal for the same bytes."""
    image_hashes: np.ndarray | None = None
    """u64[N, I, 4]: `perceptual_hashes` of each of the I images of a row."""
    groups: np.ndarray | None = None
    """[N]: cells of the column whose groups must not be in two splits."""
    ordered_by: str | None = None
    """The column that rows were split by in order (time): it differs between the splits on purpose."""
    has_columns: bool = True
    """False for images of folders and idx files: nothing to split by can stand beside them."""


class Copies(NamedTuple):
    """Rows that share their key with another row, and the number of their group (both i64[M]).

    Sorted by group, then row; groups are in the order of their first rows.
    """

    rows: np.ndarray
    group: np.ndarray

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return int(self.group[-1]) + 1 if len(self.group) else 0


def hash_cells(columns: Columns, names: Sequence[str]) -> np.ndarray:
    """Return u64[N], equal for rows whose cells have equal text in all of these columns.

    Good within one process only, for Python salts its hashes; so blocks of rows may be hashed apart. Rows that differ
    share a key with a probability of N²/2⁶⁵: 3 in a million tables of ten million rows. No columns: ValueError.
    """
    if not names:
        raise ValueError("hash_cells: expected at least one column, got none")
    keys = np.zeros(len(columns[names[0]]), np.uint64)
    for name in names:
        cells = texts(columns[name])
        hashes = np.fromiter(map(hash, cells), np.int64, len(cells)).view(np.uint64)
        keys = mix(keys, hashes)
    return keys


def mix(keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return u64[N] that depends on both arrays u64[N] and on their order (the finaliser of SplitMix64)."""
    mixed = (keys + _GOLDEN) ^ values
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MULTIPLIERS[0]
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MULTIPLIERS[1]
    return mixed ^ (mixed >> np.uint64(31))


def bits(values: np.ndarray) -> np.ndarray:
    """Return u64[N], different for every two different values of an i32 or f32 array [N]; all NaN are one."""
    if values.dtype.kind == "f":
        plain = values.astype(np.float32) + np.float32(0)  # -0 becomes 0
        values = np.where(np.isnan(plain), np.float32(np.nan), plain).view(np.int32)
    return values.astype(np.int64).view(np.uint64)


def copies(keys: np.ndarray) -> Copies:
    """Return the rows whose key u64[N] another row has too."""
    ordered = np.sort(keys)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    if not len(repeated):
        return Copies(np.empty(0, np.int64), np.empty(0, np.int64))
    rows, group = [], []
    for start in range(0, len(keys), BLOCK_ROWS):
        block = keys[start : start + BLOCK_ROWS]
        at = np.minimum(np.searchsorted(repeated, block), len(repeated) - 1)
        hits = np.flatnonzero(repeated[at] == block)
        rows.append(hits + start)
        group.append(at[hits])
    rows, group = np.concatenate(rows), np.concatenate(group)
    first = np.unique(group, return_index=True)[1]
    group = np.argsort(np.argsort(first))[group]
    order = np.argsort(group, kind="stable")
    return Copies(rows[order], group[order])


def parts_of(rows: Rows) -> np.ndarray:
    """Return i8[N]: 0 for train rows, 1 validation, 2 test, -1 none."""
    parts = np.full(len(rows.names), -1, np.int8)
    for i, members in enumerate(rows.split[:3]):
        parts[members] = i
    return parts


def sample(members: np.ndarray, limit: int) -> np.ndarray:
    """Return at most `limit` of these rows in random order, the same at every call."""
    generator = np.random.Generator(np.random.Philox(key=0))
    if len(members) > 4 * limit:
        drawn = np.unique(generator.integers(len(members), size=limit))
        return generator.permutation(members[drawn])
    return generator.permutation(members)[:limit]


def place(rows: Rows, row: int) -> str:
    """Return what names a row for people: `line 12`, or its id or path."""
    name = rows.names[row]
    return f"line {name}" if isinstance(name, int | np.integer) else str(name)


def places(rows: Rows, members: Iterable[int], parts: np.ndarray) -> str:
    """Return one group of rows in words, each with its split: first one of each split, then others."""
    members = list(members)
    first = {int(parts[row]): row for row in reversed(members)}
    leading = sorted(first.values())
    members = [*leading, *(row for row in members if row not in leading)]
    said = [f"{place(rows, row)} ({PARTS[parts[row]]})" for row in members[:MEMBERS]]
    more = len(members) - MEMBERS
    return " = ".join(said) + (f" and {more:,} more" if more > 0 else "")


def one_answer(label: np.ndarray) -> np.ndarray:
    """Return [N], equal for rows with the same answer: of labels `[N, L]` that have the same, of numbers the first."""
    if label.ndim == 2 and label.dtype.kind == "i":
        return np.unique(label, axis=0, return_inverse=True)[1].reshape(-1)
    return label if label.ndim == 1 else label[:, 0]


def noun(rows: Rows) -> str:
    """Return what a row is called: `image` where there is nothing else, else `row`."""
    return "image" if rows.schema.image is not None and not rows.schema.features else "row"


def kept_together(rows: Rows, how: str) -> str:
    """Return the advice to keep rows in one split by a column, which is made as `how` says."""
    listed = "" if rows.has_columns else "list the images in a .csv file, "
    return f"{listed}{how} (split.strategy: group)"


def counted(number: int, what: str) -> str:
    """Return a count in words.

    >>> counted(1, "row"), counted(1177, "row"), counted(2, "class"), counted(2, "batch")
    ('1 row', '1,177 rows', '2 classes', '2 batches')
    """
    ending = "" if number == 1 else "es" if what.endswith(("s", "ch")) else "s"
    return f"{number:,} {what}{ending}"


def finding(check: str, what: str, found: int, examples: Iterable[str], advice: str) -> Finding:
    """Return the Finding with the default severity and as many examples as are shown."""
    return Finding(check, "warn", what, found, tuple(examples)[:SHOWN], advice)


def named(names: Iterable[str]) -> str:
    """Return names in quotes, with a count where there are too many to say."""
    names = list(names)
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(f"'{name}'" for name in names[:SHOWN]) + more
