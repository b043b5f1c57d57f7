"""One reading of a table: every cell is parsed once, and little is kept of it.

Of a column with few distinct texts these are kept, and a code for each row (4 bytes). Of one with many no text is
kept: its numbers or dates (8 bytes a row for each date format that still fits), and of each cell a hash and a count of
words (12 bytes), which tell how many distinct texts there are; two of equal hash count as one (odds of 3e-6 in a column
of 10 million). What is kept lies in memory, or in files of a folder; beyond it a survey holds one chunk of rows
and at most `many` texts a column.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import compress, count, repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmjax.data.cells import floats, missing_texts, text_days, texts
from mmjax.data.facts import Facts, Traits, merge, traits_of, word_counts, written_numbers

TEXTS = 1_000_000
"""About how many distinct texts a survey keeps of all columns together."""
WRITTEN = 2
"""What stands for a number written for people where there is 1 for a number, and -N for a text of N words."""
FEWEST, MOST = 2_000, 65_536
"""Limits to its share for one column."""


class Strip:
    """An array that grows at its end, in memory, or in a file at `path`."""

    def __init__(self, dtype: type[np.generic], path: Path | None = None) -> None:
        self._dtype, self._path = np.dtype(dtype), path
        self._parts: list[np.ndarray] = []

    def append(self, values: np.ndarray) -> None:
        """Add values at the end."""
        values = np.ascontiguousarray(values, self._dtype)
        if self._path is None:
            self._parts.append(values)
        else:
            with self._path.open("ab") as file:
                file.write(values.data)

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the values from `start` to `stop`; by default all."""
        if self._path is not None:
            count = -1 if stop is None else stop - start
            return np.fromfile(self._path, self._dtype, count, offset=start * self._dtype.itemsize)
        if len(self._parts) != 1:
            self._parts = [np.concatenate([np.empty(0, self._dtype), *self._parts])]
        return self._parts[0][start:stop]

    def clear(self) -> None:
        """Forget all values."""
        self._parts = []
        if self._path is not None:
            self._path.unlink(missing_ok=True)


class Values(NamedTuple):
    """A value for each row: those of a strip, or what a table holds at the places that the strip gives."""

    strip: Strip
    lookup: np.ndarray | None = None

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the values of the rows from `start` to `stop`; by default of all."""
        found = self.strip.read(start, stop)
        return found if self.lookup is None else self.lookup[found]


class Coded(NamedTuple):
    """Cells by their distinct texts."""

    texts: np.ndarray
    """object[K]: the distinct texts, missing ones too, in order of first appearance."""
    codes: Strip
    """i32[N]: where among them each cell stands."""


class Seen(NamedTuple):
    """What is kept of a column: its `facts`, and of its cells either texts and codes, or numbers or days."""

    facts: Facts
    markers: frozenset[str]
    """The texts that mean missing."""
    coded: Coded | None = None
    """None where there are many distinct texts."""
    floats: Strip | None = None
    """f64[N], NaN where missing or no number; None where coded, and where not kept."""
    dates: Mapping[str, Strip] = {}
    """By format, f64[N] days since 1970-01-01, NaN where missing or no date."""
    hashed: Strip | None = None
    """i64[N]: the hash of each cell; None where coded."""

    def numbers(self) -> "Values":
        """Return the numbers, f64[N], NaN where missing or no number."""
        if self.coded is not None:
            return self.looked_up(_parse(self.coded.texts.tolist(), self.markers)[0])
        assert self.floats is not None, "a column of numbers keeps them"
        return Values(self.floats)

    def days(self, form: str) -> "Values":
        """Return the days since 1970-01-01, f64[N], NaN where missing or no date in this format."""
        if self.coded is not None:
            return self.looked_up(_days(self.coded.texts.tolist(), self.markers, form))
        return Values(self.dates[form])

    def missing(self) -> np.ndarray:
        """Return bool[N]: which cells are missing; only where they are coded, or else numbers."""
        if self.coded is not None:
            return self.looked_up(_gaps(self.coded.texts.tolist(), self.markers)).read()
        return np.isnan(self.numbers().read())

    def cells(self) -> "Values":
        """Return the cells, object[N]; only where they are coded."""
        return self.looked_up(self.vocabulary().texts)

    def hashes(self) -> "Values":
        """Return the hash of each cell, i64[N], as Python makes it in this process."""
        if self.coded is not None:
            return self.looked_up(_hashes(self.coded.texts.tolist()))
        assert self.hashed is not None, "hashes are kept where texts are not"
        return Values(self.hashed)

    def looked_up(self, lookup: np.ndarray) -> "Values":
        """Return `lookup[i]` for each cell, `i` its place among the distinct texts; only where cells are coded."""
        return Values(self.vocabulary().codes, lookup)

    def vocabulary(self) -> Coded:
        """Return the distinct texts and the codes of a column that has them."""
        assert self.coded is not None, f"the texts of '{self.facts.name}' are kept"
        return self.coded


class Keep(NamedTuple):
    """What to keep of a column with many distinct texts, whatever its cells look like."""

    texts: bool = False
    """All of them: a column that is known to be categorical."""
    numbers: bool = False
    """Numbers, though some cells are none."""
    days: bool = False
    """ISO dates, though some cells are none."""


Place = Callable[[str, type[np.generic]], Strip]
"""Makes the Strip of a name."""


def share(columns: int) -> int:
    """Return how many distinct texts a survey of so many columns keeps of each."""
    return max(FEWEST, min(MOST, TEXTS // columns))


def see(name: str, cells: np.ndarray, markers: Iterable[str], keep: Keep = Keep(texts=True)) -> Seen:
    """Return what is Seen of one column in memory; by default with all texts."""
    column = ColumnSurvey(name, markers, MOST, keep, lambda _name, dtype: Strip(dtype))
    values = texts(cells)
    for start in range(0, len(values), MOST):  # in parts that stay in the processor's cache
        column.add(values[start : start + MOST])
    return column.seen()


class ColumnSurvey:
    """Looks at a column chunk by chunk: `add` the cells of each, then take what is `seen`."""

    def __init__(self, name: str, markers: Iterable[str], many: int, keep: Keep, place: Place) -> None:
        self._name, self._many, self._keep, self._place = name, many, keep, place
        self._markers = missing_texts(markers)
        self._rows = self._missing = 0
        self._known: dict[str, int] | None = {}
        self._codes = place(f"{name}.codes", np.int32)
        self._traits = Traits()
        self._hashes, self._words = place(f"{name}.hashes", np.int64), place(f"{name}.words", np.int32)
        self._floats: Strip | None = place(f"{name}.floats", np.float64)
        self._dates: dict[str, Strip] | None = None

    def add(self, cells: list[str]) -> None:
        """Take in the cells of the next rows."""
        self._rows += len(cells)
        if self._known is None:
            self._add_many(cells)
            return
        codes = _lookup(self._known, cells)
        if len(new := np.flatnonzero(codes < 0)):
            for text in dict.fromkeys(cells[i] for i in new.tolist()):
                self._known[text] = len(self._known)
            codes[new] = _lookup(self._known, [cells[i] for i in new.tolist()])
        self._codes.append(codes)
        if len(self._known) > self._many and not self._keep.texts:
            distinct, self._known = list(self._known), None
            self._digest(distinct, self._codes.read())
            self._codes.clear()

    def seen(self) -> Seen:
        """Return what is kept of all cells."""
        if self._known is None:
            facts, dates = self._facts_of_many(), self._dates or {}
            return Seen(facts, self._markers, floats=self._floats, dates=dates, hashed=self._hashes)
        known = list(self._known)
        numbers, gaps = _parse(known, self._markers)
        distinct, numbers = list(compress(known, ~gaps)), numbers[~gaps]
        written = written_numbers(distinct, numbers)
        facts = Facts(
            self._name,
            self._rows,
            missing=int(np.bincount(self._codes.read(), minlength=len(known))[gaps].sum()),
            distinct=len(distinct),
            numbers=int((~np.isnan(numbers)).sum()),
            written=int(written.sum()),
            words=int(word_counts(distinct, numbers, written).sum()),
            traits=traits_of(distinct, numbers, written),
        )
        return Seen(facts, self._markers, Coded(text_array(known), self._codes))

    def _add_many(self, cells: list[str]) -> None:
        if self._traits.formats and self._traits.wrong:  # dates are slow to parse, and often repeated
            self._digest(*intern(cells))
        else:
            self._digest(cells, slice(None))

    def _digest(self, cells: list[str], codes: np.ndarray | slice) -> None:
        """Take in `cells[codes]`: the cells of rows, or distinct cells and where among them those of the rows are."""
        numbers, gaps = _parse(cells, self._markers)
        self._missing += int(gaps[codes].sum())
        present, found = (list(compress(cells, ~gaps)), numbers[~gaps]) if gaps.any() else (cells, numbers)
        written = written_numbers(present, found)
        self._traits = merge(self._traits, traits_of(present, found, written, self._traits.formats))
        self._hashes.append(_hashes(cells)[codes])
        words = np.zeros(len(cells), np.int32)
        counts = word_counts(present, found, written) * np.where(np.isnan(found), -1, 1)
        words[~gaps] = np.where(written, WRITTEN, counts)
        self._words.append(words[codes])
        if self._traits.wrong and not self._keep.numbers and self._floats is not None:
            self._floats.clear()
            self._floats = None
        if self._floats is not None:
            self._floats.append(numbers[codes])
        self._keep_days(cells, codes)

    def _keep_days(self, cells: list[str], codes: np.ndarray | slice) -> None:
        wanted = (*self._traits.formats, *(("iso",) if self._keep.days else ()))
        if self._dates is None:
            self._dates = {form: self._place(f"{self._name}.{form}", np.float64) for form in wanted}
        for form in set(self._dates) - set(wanted):
            self._dates.pop(form).clear()
        for form, strip in self._dates.items():
            strip.append(_days(cells, self._markers, form)[codes])

    def _facts_of_many(self) -> Facts:
        """Return the Facts of a column whose texts are gone: their number is that of their hashes."""
        words = self._words.read()
        present = words != 0
        words, hashes = words[present], self._hashes.read()[present]
        if self._traits.wrong:
            _, first = np.unique(hashes, return_index=True)
            words = words[first]
        else:
            hashes.sort()  # np.unique takes ten times as long
            words = words[: np.count_nonzero(np.diff(hashes)) + 1]  # a number is one word
        self._words.clear()
        numbers, written = int((words == 1).sum()), int((words == WRITTEN).sum())
        total = numbers + written - int(words[words < 0].sum())
        return Facts(self._name, self._rows, self._missing, len(words), numbers, written, total, self._traits)


def intern(cells: list[str]) -> tuple[list[str], np.ndarray]:
    """Return the distinct texts in order of first appearance, and i32[N] where among them each cell stands.

    >>> distinct, codes = intern(["b", "a", "b"])
    >>> distinct, codes.tolist()
    (['b', 'a'], [0, 1, 0])
    """
    known = dict(zip(dict.fromkeys(cells), count(), strict=False))
    return list(known), _lookup(known, cells)


def text_array(cells: Iterable[str]) -> np.ndarray:
    """Return texts as object[N]."""
    cells = list(cells)
    array = np.empty(len(cells), dtype=object)
    array[:] = cells
    return array


def _lookup(known: dict[str, int], cells: Sequence[str]) -> np.ndarray:
    """Return i32[N]: the number of each text, -1 where it has none."""
    return np.fromiter(map(known.get, cells, repeat(-1)), np.int32, len(cells))


def _hashes(cells: Sequence[str]) -> np.ndarray:
    return np.fromiter(map(hash, cells), np.int64, len(cells))


def _gaps(cells: Sequence[str], markers: frozenset[str]) -> np.ndarray:
    return np.fromiter(map(markers.__contains__, map(str.strip, cells)), bool, len(cells))


def _parse(cells: Sequence[str], markers: frozenset[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return (f64[N] numbers, NaN where missing or none, bool[N] of the missing cells)."""
    gaps = np.fromiter(map(markers.__contains__, cells), bool, len(cells))
    numbers = np.full(len(cells), np.nan)
    numbers[~gaps] = floats(list(compress(cells, ~gaps)) if gaps.any() else cells)
    odd = np.flatnonzero(np.isnan(numbers) & ~gaps)
    gaps[odd] = _gaps([cells[i] for i in odd.tolist()], markers)  # those with blanks around
    return numbers, gaps


def _days(cells: Sequence[str], markers: frozenset[str], form: str) -> np.ndarray:
    found = (None if cell.strip() in markers else text_days(cell, form) for cell in cells)
    return np.array([np.nan if days is None else days for days in found], np.float64)
