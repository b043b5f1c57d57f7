"""What a cell means: when it is missing, a number, a date. One set of rules for inference, validation and encoding."""

import re
from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta
from functools import lru_cache
from itertools import chain, compress, repeat
from numbers import Real
from typing import Any

import numpy as np

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_GAP = "[ \u00a0\u202f'\u2019]"
_SIGN = "[$\u20ac\u00a3\u00a5\u20b9%]"
_WRITTEN_NUMBER = re.compile(
    rf"(?P<before>[+-]?{_SIGN}?[ \u00a0]?[+-]?)"
    rf"(?P<digits>[1-9]\d{{0,2}}(?P<mark>,|{_GAP})\d{{3}}((?P=mark)\d{{3}})*(\.\d+)?"  # 12,345.6
    rf"|[1-9]\d{{0,2}}(?P<other>\.|{_GAP})\d{{3}}((?P=other)\d{{3}})*,\d+|[1-9]\d{{0,2}}(\.\d{{3}}){{2,}}"  # 12.345,6
    r"|(0|[1-9]\d*)([.,]\d+)?|[.,]\d+)"
    rf"(?P<after>[ \u00a0]?{_SIGN}?)",
    re.ASCII,
)
_LONGEST_NUMBER, _LAST = 40, f"0123456789{_SIGN[1:-1]}"
_LEADING_ZERO = re.compile(r"^[ \t]*[+-]?0[0-9]", re.MULTILINE)
LARGEST = float(np.finfo(np.float32).max)
BOOLEAN_PAIRS = (("false", "true"), ("no", "yes"), ("f", "t"), ("n", "y"))
"""The texts of a boolean column, false first, in lower case."""

ISO_DATE = re.compile(
    r"\d{4}-\d\d-\d\d([T ]([01]\d|2[0-3]):[0-5]\d(:[0-5]\d([.,]\d{1,9})?)?(Z|[+-]\d\d:?\d\d)?)?", re.ASCII
)
_TIMES = ("", " %H:%M", " %H:%M:%S")
DATE_FORMATS = tuple(day + time for day in ("%Y/%m/%d", "%d.%m.%Y") for time in _TIMES)
MONTH_FIRST = tuple("%m/%d/%Y" + time for time in _TIMES)
DAY_FIRST = tuple("%d/%m/%Y" + time for time in _TIMES)
ALL_FORMATS = ("iso", *DATE_FORMATS, *MONTH_FIRST, *DAY_FIRST)
_EPOCH = datetime(1970, 1, 1)
_PLAIN = frozenset({float, int, type(None)})


def missing_texts(markers: Iterable[str]) -> frozenset[str]:
    """Return the texts that mean missing once blanks around them are stripped: none at all, and the markers."""
    return frozenset({"", *(marker.strip() for marker in markers)})


def cell_text(cell: Any) -> str:
    """Return a cell as text: text untouched, None and NaN as `""`, numbers as Python writes them.

    >>> cell_text(1), cell_text(1.5), cell_text(None)
    ('1', '1.5', '')
    """
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int) and cell.bit_length() > 4096:
        return hex(cell)  # Python refuses to write longer ones as decimals
    return "" if cell is None or cell != cell else str(cell)


def texts(column: np.ndarray) -> list[str]:
    """Return the cells of a column as texts (see `cell_text`)."""
    cells = column.tolist()
    return cells if set(map(type, cells)) <= {str} else list(map(cell_text, cells))


def missing_mask(cells: Sequence[str], markers: Iterable[str]) -> np.ndarray:
    """Return bool[N]: which texts are blank or a marker, blanks around them ignored."""
    return np.fromiter(map(missing_texts(markers).__contains__, map(str.strip, cells)), bool, len(cells))


def floats(cells: Sequence[str]) -> np.ndarray:
    """Return f64[N], NaN where the text is not a decimal or scientific number that a finite f32 can hold.

    >>> floats(["2e+05", "-.5", "1_000", "1e400", "0x10", "nan"]).tolist()
    [200000.0, -0.5, nan, nan, nan, nan]
    """
    joined = "\n".join(cells)
    numbers = None
    if joined.isascii() and not joined.encode().translate(None, b"0123456789+-.eE \n"):
        try:
            numbers = np.fromiter(map(float, cells), np.float64, len(cells))
        except ValueError:
            numbers = None
    if numbers is None:
        numbers = np.array([float(c) if NUMBER.fullmatch(c.strip()) else np.nan for c in cells], dtype=np.float64)
    return np.where(np.abs(numbers) <= LARGEST, numbers, np.nan)


def ordered(distinct: Sequence[str]) -> tuple[str, ...]:
    """Return the texts sorted as numbers where all are numbers, else as texts.

    >>> ordered(["10", "9"]), ordered(["10", "9", "x"])
    (('9', '10'), ('10', '9', 'x'))
    """
    numbers = floats(distinct)
    if np.isnan(numbers).any():
        return tuple(sorted(distinct))
    return tuple(text for _, text in sorted(zip(numbers.tolist(), distinct, strict=True)))


def plain_readings(text: str) -> tuple[str, ...]:
    """Return the plain numbers that a number written for people may mean: none, one, or two where a comma tells not.

    Strict: digits in groups of three, one decimal comma or point, a sign of a currency or `%` before or after.

    >>> plain_readings("$1,234.50"), plain_readings("0,12"), plain_readings("45 %"), plain_readings("12,345")
    (('1234.50',), ('0.12',), ('45',), ('12345', '12.345'))
    >>> plain_readings("1.2.2024"), plain_readings("007%"), plain_readings("12,34,5"), plain_readings("7 kg")
    ((), (), (), ())
    """
    text = text.strip() if len(text) <= _LONGEST_NUMBER else ""
    if not text or text[-1] not in _LAST or (found := _WRITTEN_NUMBER.fullmatch(text)) is None:
        return ()
    minus = "-" if "-" in found["before"] else ""
    digits = re.sub(_GAP, "", found["digits"])
    points, commas = digits.count("."), digits.count(",")
    if points > 1 or (points and commas and digits.rindex(".") < digits.rindex(",")):
        readings = (digits.replace(".", "").replace(",", "."),)
    elif commas == 1 and not points and found["mark"] == ",":
        readings = (digits.replace(",", ""), digits.replace(",", "."))
    elif commas == 1 and not points:
        readings = (digits.replace(",", "."),)
    else:
        readings = (digits.replace(",", ""),)
    return tuple(minus + reading for reading in readings)


def leading_zero(cells: Sequence[str]) -> bool:
    """Return whether any text begins like a number with a leading zero, as codes do.

    >>> leading_zero(["0.5", "0", "10"]), leading_zero(["1", "-007"])
    (False, True)
    """
    joined = "\n".join(cells)
    if " " in joined or "\t" in joined:
        return _LEADING_ZERO.search(joined) is not None
    text = np.frombuffer(f"\n{joined}\n\n".encode("utf-8", "surrogatepass"), np.uint8)
    at = np.flatnonzero(text[:-2] == ord("\n")) + 1
    at += (text[at] == ord("+")) | (text[at] == ord("-"))
    after = text[at + 1]
    return bool(((text[at] == ord("0")) & (after >= ord("0")) & (after <= ord("9"))).any())


def parse_numbers(column: np.ndarray, markers: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return (f64[N] with NaN where missing, bool[N] of the cells that are neither missing nor a number).

    Texts follow the rule of `floats`; real numbers pass, booleans and what a finite f32 cannot hold do not. A number
    that equals a marker is missing: the marker -999 means -999 and -999.0 alike where cells are no texts.
    """
    markers = tuple(markers)
    if column.dtype.kind in "fiu":
        numbers = _without_markers(column, marker_numbers(markers))
        bad = np.abs(numbers) > LARGEST
        return np.where(bad, np.nan, numbers), bad
    cells = (column.astype(str) if column.dtype.kind in "mM" else column).tolist()
    if not set(map(type, cells)) <= {str}:
        cells = list(map(_number_text, cells, repeat(marker_numbers(markers))))
    missing = missing_mask(cells, markers)
    present = list(compress(cells, ~missing)) if missing.any() else cells
    numbers = np.full(len(cells), np.nan)
    numbers[~missing] = floats(present)
    return numbers, np.isnan(numbers) & ~missing


@lru_cache(maxsize=256)
def marker_numbers(markers: tuple[str, ...]) -> tuple[float, ...]:
    """Return the markers that are numbers.

    >>> marker_numbers(("NA", "-999", " 1e3 ", "1e400"))
    (-999.0, 1000.0)
    """
    numbers = (float(marker) for marker in markers if NUMBER.fullmatch(marker.strip()))
    return tuple(number for number in numbers if abs(number) <= LARGEST)


def _without_markers(column: np.ndarray, gaps: tuple[float, ...]) -> np.ndarray:
    """Return a column of numbers as f64, NaN for those in `gaps`, as its own type holds them: -99.9 in f32 is -99.9."""
    numbers = column.astype(np.float64)
    if gaps and column.dtype.kind == "f":
        with np.errstate(over="ignore"):
            held = np.array(gaps).astype(column.dtype).astype(np.float64)
        numbers[np.isin(numbers, held[np.isfinite(held)])] = np.nan
    elif gaps:
        numbers[np.isin(numbers, gaps)] = np.nan
    return numbers


def plain_numbers(columns: Sequence[np.ndarray], markers: Iterable[str]) -> np.ndarray | None:
    """Return f64[F, N], what `parse_numbers` gives for each of F columns, where all cells are numbers or None.

    None where a cell is a text or anything else, or too large: then each column is parsed by itself. A request's row of
    20 numbers is read 15 times as fast together as column by column.
    """
    kinds, gaps = {column.dtype.kind for column in columns}, marker_numbers(tuple(markers))
    if kinds and kinds <= set("fiu"):
        numbers = np.array([_without_markers(column, gaps) for column in columns] if gaps else columns, np.float64)
    elif kinds != {"O"}:
        return None
    else:
        cells = [column.tolist() for column in columns]
        if not set(map(type, chain.from_iterable(cells))) <= _PLAIN:
            return None
        try:
            numbers = np.array(cells, np.float64)
        except OverflowError:  # whole numbers beyond f64
            return None
        if gaps:
            numbers[np.isin(numbers, gaps)] = np.nan
    return None if (np.abs(numbers) > LARGEST).any() else numbers


def _number_text(cell: Any, gaps: tuple[float, ...]) -> str:
    """Return a cell of a numeric column as the text of a number, `""` where missing, a word where it is neither."""
    match cell:
        case str():
            return cell
        case bool() | np.bool_():
            return "boolean"
        case None:
            return ""
        case int() if abs(cell) > LARGEST:
            return "too large"
        case Real():
            return "" if cell != cell or cell in gaps else repr(float(cell))
        case _:
            return "no number"


def date_format(cells: Sequence[str]) -> tuple[str, str]:
    """Return (format, "") that all these texts share: `"iso"` or a `strptime` format; ("", why not) when none does."""
    return choose_format(fitting_formats(cells), time_zones(cells))


def fitting_formats(cells: Sequence[str], formats: Iterable[str] = ALL_FORMATS) -> tuple[str, ...]:
    """Return those of `formats` that every text follows."""
    return tuple(form for form in formats if all(text_days(cell, form) is not None for cell in cells))


def time_zones(cells: Sequence[str]) -> frozenset[bool]:
    """Return whether there are ISO dates with (True) and without (False) a time zone."""
    return frozenset(not set("Z+-").isdisjoint(cell.strip()[10:]) for cell in cells)


def choose_format(fitting: Sequence[str], zones: frozenset[bool]) -> tuple[str, str]:
    """Return (format, "") for texts that follow all of `fitting`, ISO dates with these `zones`; ("", why not) if none.

    Day and month are never guessed: `03/04/2024` fits two formats, and only another cell can tell them apart.
    """
    if "iso" in fitting:
        return ("iso", "") if len(zones) < 2 else ("", "dates, some with and some without a time zone")
    plain, month, day = (
        next((form for form in forms if form in fitting), "") for forms in (DATE_FORMATS, MONTH_FIRST, DAY_FIRST)
    )
    if not plain and month and day:
        return "", "dates whose day and month no cell tells apart"
    return plain or month or day, ""


def parse_dates(column: np.ndarray, markers: Iterable[str], form: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (f64[N] days since 1970-01-01, bool[N] of the cells that are neither missing nor a date).

    NaN is missing. Times with a zone are brought to UTC. Cells may also be `date`, `datetime` or `datetime64`.
    """
    if column.dtype.kind == "M":
        days = (column - np.datetime64("1970-01-01")) / np.timedelta64(1, "D")
        return days.astype(np.float64), np.zeros(len(column), bool)
    cells = column.tolist()
    gaps = missing_texts(markers)
    if set(map(type, cells)) <= {str}:
        found = {cell: _cell_days(cell, gaps, form) for cell in set(cells)}
        values = list(map(found.__getitem__, cells))
    else:
        values = [_cell_days(cell, gaps, form) for cell in cells]
    bad = np.array([value is None for value in values], bool)
    return np.array([np.nan if value is None else value for value in values], np.float64), bad


def _cell_days(cell: Any, gaps: frozenset[str], form: str) -> float | None:
    if isinstance(cell, datetime):
        return np.nan if cell != cell else _days(cell)
    if isinstance(cell, date):
        return float(cell.toordinal() - _EPOCH.toordinal())
    if not isinstance(cell, str):
        return np.nan if cell is None or cell != cell else None
    return np.nan if cell.strip() in gaps else text_days(cell, form)


def text_days(cell: str, form: str) -> float | None:
    """Return the days since 1970-01-01 of a date in this format; None when it is none."""
    cell = cell.strip()
    try:
        if form != "iso":
            return _days(datetime.strptime(cell, form))
        return _days(datetime.fromisoformat(cell)) if ISO_DATE.fullmatch(cell) else None
    except ValueError:
        return None


def _days(moment: datetime) -> float:
    offset = moment.utcoffset() or timedelta()
    return (moment.replace(tzinfo=None) - offset - _EPOCH) / timedelta(days=1)
