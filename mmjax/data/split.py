"""Dealing rows to train, validation and test; the seed decides, the realised split is saved."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, assert_never

import numpy as np

from mmjax.data.split_groups import deal_groups, describe_groups, group_codes
from mmjax.data.split_time import deal_times, describe_times, read_times
from mmjax.errors import DataError

Strategy = Literal["random", "stratified", "column", "folders", "group", "group_stratified", "time"]
PARTS = ("train", "validation", "test")
PART_NAMES = {"train": 0, "validation": 1, "val": 1, "valid": 1, "test": 2}
"""What a split column or folder may say, in any case."""
SHOWN = 20
PIECE = 100_000
"""Rows put into words at a time."""


class Split(NamedTuple):
    """Row indices, i64, ascending, no row in two parts; `notes` say what a user should know about the dealing."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    notes: tuple[str, ...]
    folds: np.ndarray | None = None
    """i16[len(train)]: the fold that holds out each training row; None without folds. There is no validation then."""


def split_rows(
    n: int,
    *,
    strategy: Strategy,
    fractions: tuple[float, float, float],
    seed: int,
    labels: np.ndarray | None = None,
    classes: Sequence[str] = (),
    assigned: np.ndarray | None = None,
) -> Split:
    """Return every one of `n` rows dealt to train, validation and test in shares of `fractions` (summing to 1).

    A part with a share above 0 gets at least one row (unless small classes take precedence, see stratified).
    stratified: `labels` i32[n], called `classes` in notes, keep their shares in every part; every class is in train; a
    class of one row goes to train, one of two rows to train and test.
    column, folders: `assigned`, texts [n], name the part; when they name no validation row, some train rows become it.
    group, group_stratified: `assigned` names the group of a row, which is dealt as a whole (see `deal_groups`).
    time: `assigned` holds dates or numbers; the oldest are trained on (see `deal_times`), and the seed plays no part.
    DataError when there are too few rows or groups, or an assigned text names no part or no time.
    """
    match strategy:
        case "random":
            return _as_split(_deal(n, fractions, seed), ())
        case "stratified":
            labels = _given(labels, strategy, "labels")
            return _as_split(_deal_stratified(labels, fractions, seed), _single_rows(labels, classes))
        case "column" | "folders":
            return _split_assigned(_given(assigned, strategy, "assigned"), fractions, seed, labels)
        case "group":
            return _split_groups(_given(assigned, strategy, "assigned"), fractions, seed, None)
        case "group_stratified":
            labels = _given(labels, strategy, "labels")
            return _split_groups(_given(assigned, strategy, "assigned"), fractions, seed, labels)
        case "time":
            return _split_times(_given(assigned, strategy, "assigned"), fractions)
        case _:
            assert_never(strategy)


def deal_folds(
    split: Split, folds: int, *, seed: int, labels: np.ndarray | None = None, groups: np.ndarray | None = None
) -> Split:
    """Return the Split with its training rows dealt to `folds`, each of which holds out about as many.

    `labels` i32[n] keep their shares in every fold as well as whole rows can; `groups`, texts [n], stay together. With
    both, as `deal_groups` does. DataError for fewer rows, or groups, than folds.
    """
    train, generator = split.train, _generator(seed)
    if groups is not None:
        codes, known = group_codes(groups[train])
        if len(known) < folds:
            most = f"at most {len(known)}, the groups that are not for test"
            raise DataError(f"split.folds: expected {most}, got {folds}")
        shares = np.full(folds, 1.0 / folds)
        dealt = deal_groups(codes, shares, generator, None if labels is None else labels[train])
        return split._replace(folds=dealt.astype(np.int16))
    if len(train) < folds:
        raise DataError(f"split.folds: expected at most {len(train)}, the rows that are not for test, got {folds}")
    order = _shuffled(np.arange(len(train)), generator)
    if labels is not None:
        order = order[np.argsort(labels[train][order], kind="stable")]
    dealt = np.empty(len(train), np.int16)
    dealt[order] = np.arange(len(train)) % folds  # class after class, so that no fold has two rows more than another
    return split._replace(folds=dealt)


def split_json(split: Split, names: np.ndarray) -> Iterator[str]:
    """Yield the Split as one line of JSON, piece by piece: the indices of every part, the notes, each row's name.

    With folds, also which of them holds out each row of train.

    Indices count the rows that were kept, so only their names (line, id or path) tell which rows of the data they are.
    """
    for part, rows in zip(PARTS, split[:3], strict=True):
        yield f'{"{" if part == PARTS[0] else ""}"{part}":['
        yield from _joined(rows, lambda piece: piece.tolist())
        yield "],"
    if split.folds is not None:
        yield '"folds":['
        yield from _joined(split.folds, lambda piece: piece.tolist())
        yield "],"
    yield f'"notes":{json.dumps(split.notes)},"names":['
    yield from _joined(names, lambda piece: list(map(str, piece.tolist())))
    yield "]}\n"


def _joined(values: np.ndarray, plain: Callable[[np.ndarray], list]) -> Iterator[str]:
    """Yield the inside of a JSON list, block by block: ten million texts at once would fill the memory."""
    for start in range(0, len(values), PIECE):
        piece = json.dumps(plain(values[start : start + PIECE]), separators=(",", ":"))
        yield ("," if start else "") + piece[1:-1]


def _given(found: np.ndarray | None, strategy: str, name: str) -> np.ndarray:
    if found is None:
        raise ValueError(f"strategy '{strategy}' needs {name}")
    return found


def _as_split(parts: np.ndarray, notes: tuple[str, ...]) -> Split:
    train, validation, test = (np.flatnonzero(parts == i).astype(np.int64) for i in range(3))
    return Split(train, validation, test, notes)


def _sizes(n: int, fractions: tuple[float, float, float]) -> np.ndarray:
    """Return rows per part, i64[3]; DataError when a part with a share would be empty, or train has no share."""
    shares = np.array(fractions)
    used = int((shares > 0).sum())
    if n < used or shares[0] <= 0:
        wanted = ", ".join(f"{name} {share:g}" for name, share in zip(PARTS, fractions, strict=True))
        raise DataError(f"split: expected rows for every part with a share ({wanted}), got {n} rows; add rows")
    sizes = _apportion(n, shares)
    while (empty := (shares > 0) & (sizes == 0)).any():
        sizes[np.argmax(empty)] += 1
        sizes[np.argmax(sizes)] -= 1
    return sizes


def _apportion(n: int, weights: np.ndarray) -> np.ndarray:
    """Return i64 counts that sum to `n` and differ by less than 1 from its shares by `weights` (largest remainder)."""
    quotas = n * weights / weights.sum()
    counts = np.floor(quotas + 1e-9).astype(np.int64)
    order = np.argsort(counts - quotas, kind="stable")
    counts[order[: n - counts.sum()]] += 1
    return counts


def _shuffled(rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return rows[np.argsort(generator.random(len(rows)), kind="stable")]


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def _deal(n: int, fractions: tuple[float, float, float], seed: int) -> np.ndarray:
    parts = np.empty(n, dtype=np.int8)
    parts[_shuffled(np.arange(n), _generator(seed))] = np.repeat(np.arange(3), _sizes(n, fractions))
    return parts


def _deal_stratified(labels: np.ndarray, fractions: tuple[float, float, float], seed: int) -> np.ndarray:
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    table = _class_table(counts, _sizes(len(labels), fractions), np.array(fractions))
    generator = _generator(seed)
    parts = np.empty(len(labels), dtype=np.int8)
    by_class = np.split(np.argsort(inverse, kind="stable"), np.cumsum(counts)[:-1])
    for rows, sizes in zip(by_class, table, strict=True):
        parts[_shuffled(rows, generator)] = np.repeat(np.arange(3), sizes)
    return parts


def _single_rows(labels: np.ndarray, classes: Sequence[str]) -> tuple[str, ...]:
    values, counts = np.unique(labels, return_counts=True)
    single = [classes[i] if classes else i for i in values[counts == 1].tolist()]
    return (f"split: classes with a single row, which goes to train: {_listed(single)}",) if single else ()


def _class_table(counts: np.ndarray, sizes: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return rows per class and part, i64[K, 3]: row sums are `counts`, column sums `sizes` where small classes allow.

    A class of one row goes to train; of two, train and then test; every class is in train.
    """
    table = np.zeros((len(counts), 3), dtype=np.int64)
    table[:, 0] = counts <= 2
    second = 2 if shares[2] > 0 else 1 if shares[1] > 0 else 0
    table[counts == 2, second] += 1
    large = np.flatnonzero(counts > 2)
    if not len(large):
        return table
    rest = np.clip(sizes - table.sum(axis=0), 0, None)
    totals = _apportion(int(counts[large].sum()), rest if rest.sum() else shares)
    table[large] = _round_table(counts[large], totals)
    for k in large[table[large, 0] == 0]:
        table[k, np.argmax(table[k])] -= 1
        table[k, 0] += 1
    return table


def _round_table(counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Return i64[K, 3] with row sums `counts` and column sums `totals` (of equal sum), near proportional everywhere."""
    quotas = counts[:, None] * totals / totals.sum()
    table = np.floor(quotas + 1e-9).astype(np.int64)
    remainders = quotas - table
    rows_left, columns_left = counts - table.sum(axis=1), totals - table.sum(axis=0)
    largest_first = np.argsort(-remainders, axis=None, kind="stable")
    for k, part in zip(*np.unravel_index(largest_first, table.shape), strict=True):
        if remainders[k, part] > 1e-9 and rows_left[k] > 0 and columns_left[part] > 0:
            _move_one(table, rows_left, columns_left, k, part)
    for k in np.repeat(np.arange(len(counts)), rows_left):
        _move_one(table, rows_left, columns_left, k, np.argmax(columns_left))
    return table


def _move_one(table: np.ndarray, rows_left: np.ndarray, columns_left: np.ndarray, k: np.intp, part: np.intp) -> None:
    table[k, part] += 1
    rows_left[k] -= 1
    columns_left[part] -= 1


def _split_assigned(
    assigned: np.ndarray, fractions: tuple[float, float, float], seed: int, labels: np.ndarray | None
) -> Split:
    texts = Counter(str(text) for text in assigned.tolist())
    unknown = [text for text in texts if text.strip().lower() not in PART_NAMES]
    if unknown:
        listed = _listed([f"{text!r} ({texts[text]} rows)" for text in unknown])
        raise DataError(f"split: expected train, validation (or val, valid) or test in every row, got {listed}")
    parts = np.array([PART_NAMES[str(text).strip().lower()] for text in assigned.tolist()], dtype=np.int8)
    notes = []
    train = np.flatnonzero(parts == 0)
    if not len(train):
        raise DataError("split: expected rows assigned to train, got none")
    if fractions[1] > 0 and not (parts == 1).any():
        kept = fractions[0] + fractions[1]
        shares = (fractions[0] / kept, fractions[1] / kept, 0.0)
        inner = _deal(len(train), shares, seed) if labels is None else _deal_stratified(labels[train], shares, seed)
        parts[train] = inner
        moved = int((inner == 1).sum())
        notes.append(f"split: no row is assigned to validation; {moved:,} of {len(train):,} train rows are used for it")
    if fractions[2] > 0 and not (parts == 2).any():
        notes.append("split: no row is assigned to test; there will be no test metrics")
    return _as_split(parts, tuple(notes))


def _split_groups(
    assigned: np.ndarray, fractions: tuple[float, float, float], seed: int, labels: np.ndarray | None
) -> Split:
    codes, _ = group_codes(assigned)
    _sizes(len(codes), fractions)  # refuses too few rows
    parts = deal_groups(codes, np.array(fractions), _generator(seed), labels)
    return _as_split(parts, describe_groups(codes, parts, np.array(fractions), PARTS))


def _split_times(assigned: np.ndarray, fractions: tuple[float, float, float]) -> Split:
    times = read_times(assigned)
    parts = deal_times(times, _sizes(len(times), fractions))
    return _as_split(parts, describe_times(times, parts, assigned, PARTS))


def _listed(names: list) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more
