"""What is known of a column's texts: traits that merge from chunk to chunk, so no more than a chunk is in memory."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mmjax.data.cells import ALL_FORMATS, choose_format, fitting_formats, leading_zero, plain_readings, time_zones

FIRST = 5
"""How many of the distinct texts are kept to be shown."""
WRONG = 6
"""How many of the distinct texts that are no numbers are kept to be shown."""
FOLDED = 3
"""How many forms of texts, written in lower case, are told apart: no more than two may be a boolean's."""


class Traits(NamedTuple):
    """What distinct texts have in common, in order of first appearance; `merge` gives those of two lists together."""

    first: tuple[str, ...] = ()
    """The first of them."""
    folded: frozenset[str] = frozenset()
    """In lower case without blanks around; some FOLDED of them where there are more."""
    wrong: tuple[str, ...] = ()
    """The first that are no numbers."""
    written: tuple[str, ...] = ()
    """The first numbers written for people (see `cells.plain_readings`): those of one reading before those of two."""
    coded: bool = False
    """Some begin like a number with a leading zero."""
    whole: bool = True
    """No number has a fraction."""
    rising: bool = True
    """Each number is larger than the one before."""
    start: float = np.inf
    """The first number."""
    end: float = -np.inf
    """The last number."""
    lowest: float = np.inf
    highest: float = -np.inf
    formats: tuple[str, ...] = ALL_FORMATS
    """The date formats that every text follows."""
    zones: frozenset[bool] = frozenset()
    """Of ISO dates: whether there are some with, some without a time zone."""


class Facts(NamedTuple):
    """What the kind of a column is decided from; distinct texts are those that are not missing."""

    name: str
    rows: int
    missing: int
    distinct: int
    numbers: int
    """How many of the distinct texts are numbers."""
    written: int
    """How many of them are no numbers but numbers written for people (see `cells.plain_readings`)."""
    words: int
    """Of all distinct texts together."""
    traits: Traits

    @property
    def all_numbers(self) -> bool:
        """Whether every text is a number."""
        return self.numbers == self.distinct


def traits_of(
    texts: Sequence[str], numbers: np.ndarray, written: np.ndarray, formats: tuple[str, ...] = ALL_FORMATS
) -> Traits:
    """Return the Traits of texts, of their `numbers` f64[N], NaN where one is no number, and `written_numbers`.

    Texts given twice count for `rising` alone. Of the date formats only `formats` are tried.
    """
    wrong = np.isnan(numbers)
    fitting = fitting_formats(texts, formats)
    traits = Traits(
        first=_distinct(texts, FIRST),
        folded=frozenset(_distinct((text.strip().casefold() for text in texts), FOLDED)),
        wrong=_distinct((texts[i] for i in np.flatnonzero(wrong).tolist()), WRONG),
        written=_clearest(texts[i] for i in np.flatnonzero(written).tolist()),
        coded=leading_zero(texts),
        formats=fitting,
        zones=time_zones(texts) if "iso" in fitting else frozenset(),
    )
    if wrong.all():
        return traits
    found = numbers[~wrong] if wrong.any() else numbers
    return traits._replace(
        whole=bool((found == np.floor(found)).all()),
        rising=bool((np.diff(found) > 0).all()),
        start=float(found[0]),
        end=float(found[-1]),
        lowest=float(found.min()),
        highest=float(found.max()),
    )


def merge(a: Traits, b: Traits) -> Traits:
    """Return the Traits of the texts of `a` followed by those of `b`."""
    return Traits(
        first=_distinct(a.first + b.first, FIRST),
        folded=frozenset(_distinct((*a.folded, *b.folded), FOLDED)),
        wrong=_distinct(a.wrong + b.wrong, WRONG),
        written=_clearest(a.written + b.written),
        coded=a.coded or b.coded,
        whole=a.whole and b.whole,
        rising=a.rising and b.rising and a.end < b.start,
        start=a.start if a.start < np.inf else b.start,
        end=b.end if b.end > -np.inf else a.end,
        lowest=min(a.lowest, b.lowest),
        highest=max(a.highest, b.highest),
        formats=tuple(form for form in a.formats if form in b.formats),
        zones=a.zones | b.zones,
    )


def fitting_format(traits: Traits) -> tuple[str, str]:
    """Return (format, "") that all texts share; ("", why not) when none does (see `cells.choose_format`)."""
    return choose_format(traits.formats, traits.zones)


def written_numbers(texts: Sequence[str], numbers: np.ndarray) -> np.ndarray:
    """Return bool[N]: which texts are no numbers, but numbers written for people (see `cells.plain_readings`)."""
    found = np.zeros(len(texts), bool)
    wrong = np.flatnonzero(np.isnan(numbers)).tolist()
    found[wrong] = [bool(plain_readings(texts[i])) for i in wrong]
    return found


def word_counts(texts: Sequence[str], numbers: np.ndarray, written: np.ndarray) -> np.ndarray:
    """Return i64[N], the words of each text; a number is one, as is one written for people."""
    wrong = np.flatnonzero(np.isnan(numbers) & ~written).tolist()
    counts = np.ones(len(texts), np.int64)
    counts[wrong] = [len(texts[i].split()) for i in wrong]
    return counts


def _clearest(written: Iterable[str]) -> tuple[str, ...]:
    return _distinct(sorted(written, key=lambda text: len(plain_readings(text))), FIRST)


def _distinct(texts: Iterable[str], most: int) -> tuple[str, ...]:
    """Return the first different texts, at most so many."""
    found: dict[str, None] = {}
    for text in texts:
        found[text] = None
        if len(found) == most:
            break
    return tuple(found)
