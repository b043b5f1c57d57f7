"""Dealing rows by time: the oldest to train, the newest to test, rows of one moment together."""

from collections.abc import Sequence
from itertools import pairwise, product

import numpy as np

from mmjax.data.cells import cell_text, date_format, floats, parse_dates
from mmjax.errors import DataError

SHOWN = 5
"""How many cells that are no time are named."""


def read_times(cells: np.ndarray) -> np.ndarray:
    """Return the time of each row, f64[N]: numbers as they are, or days since 1970-01-01 where all are dates.

    Numbers and dates are those that a table's columns may hold: dates in one format, day and month told apart. The
    cells hold no gaps. DataError names cells that are neither.
    """
    texts = list(map(cell_text, cells.tolist()))
    distinct = list(dict.fromkeys(texts))
    numbers = floats(distinct)
    if not np.isnan(numbers).any():
        known = dict(zip(distinct, numbers.tolist(), strict=True))
        return np.fromiter(map(known.__getitem__, texts), np.float64, len(texts))
    form, doubt = date_format(distinct)
    if form:
        return parse_dates(np.array(texts, dtype=object), (), form)[0]
    odd = [text for text, gap in zip(distinct, np.isnan(numbers), strict=True) if gap]
    shown = ", ".join(map(repr, odd[:SHOWN])) + (" ..." if len(odd) > SHOWN else "")
    raise DataError(
        f"split.column: expected dates in one format (such as ISO 8601) or numbers, got {doubt or shown}; mend these "
        "or name another column"
    )


def deal_times(times: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the part of each row, i8[N]: in order of `times`, near `sizes` i64[3] rows each, none empty that has rows.

    Parts end where the time changes, at the places nearest to `sizes`. Only where there are fewer times than parts are
    rows of one time divided, in the order of the file.
    """
    order = np.argsort(times, kind="stable")
    sorted_times = times[order]
    edges = np.flatnonzero(np.diff(sorted_times)) + 1
    used = np.flatnonzero(sizes)
    wanted = np.cumsum(sizes[used])[:-1]
    cuts = _nearest(edges, wanted) if len(edges) >= len(wanted) else wanted
    parts = np.empty(len(times), np.int8)
    for part, rows in zip(used, np.split(order, cuts), strict=True):
        parts[rows] = part
    return parts


def _nearest(edges: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return as many different, ascending `edges` as are `wanted` (at most two), with the least distance in sum."""
    at = np.searchsorted(edges, wanted)
    near = [range(max(0, i - 2), min(len(edges), i + 2)) for i in at.tolist()]
    options = [found for found in product(*near) if all(a < b for a, b in pairwise(found))]
    return edges[list(min(options, key=lambda found: np.abs(edges[list(found)] - wanted).sum()))]


def describe_times(times: np.ndarray, parts: np.ndarray, cells: np.ndarray, names: Sequence[str]) -> tuple[str, ...]:
    """Return notes: the first and last time of each part, as written, and how many times are in two parts."""
    ranges, of_part = [], []
    for part, name in enumerate(names):
        rows = np.flatnonzero(parts == part)
        of_part.append(np.unique(times[rows]))
        if len(rows):
            first, last = (cell_text(cells[rows[find(times[rows])]]) for find in (np.argmin, np.argmax))
            ranges.append(f"{name} {first} to {last} ({len(rows):,} rows)")
    twice = sum(map(len, of_part)) - len(np.unique(times))
    why = "; there are fewer different times than splits" if twice else ""
    return (f"split: {', '.join(ranges)}; {twice} times in two splits{why}",)
