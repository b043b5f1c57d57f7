"""Columns become a Batch: the one encoder of training, evaluation, batch prediction and serving. NumPy, on the host."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple, assert_never

import numpy as np

from mmjax.data.cells import BOOLEAN_PAIRS, cell_text, missing_texts, parse_dates, parse_numbers, plain_numbers
from mmjax.errors import DataError, did_you_mean
from mmjax.schema import Batch, Column, Columns, ImageSpec, Schema, Target

SHOWN = 20
"""How many bad cells, or unknown columns, are listed; the others are counted."""
LONGEST_NAME = 200
"""Characters of an unknown column that a message shows: a request may name one of millions."""
NEEDED_IMAGE = "an image, as the model looks at nothing else"
_FALSE, _TRUE = (frozenset(words) for words in zip(*BOOLEAN_PAIRS, strict=True))
_BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))
"""So that no fraction of a cycle rounds to 1 in f32."""


Place = Callable[[str, int], str]
"""`place(column, row)` is what a message calls a cell; rows are counted from 1."""


def in_table(column: str, row: int) -> str:
    """Return what a message calls a cell of a table, row counted from 1.

    >>> in_table("age", 3)
    "column 'age', row 3"
    """
    return f"column '{column}', row {row}"


class _Bad(NamedTuple):
    """Bad cells of one column: how many, and of the first SHOWN the row, counted from 1, and what is wrong."""

    column: str
    cells: int
    told: list[tuple[int, str]]


def encode(
    schema: Schema, columns: Columns, *, label: bool = False, image_needed: bool = False, place: Place = in_table
) -> Batch:
    """Return the Batch of these rows: `numeric f32[N, F]`, `category i32[N, C]`, images; absent where there is none.

    Columns that are `left_out` are missing in every row.

    With `label=True` also `label` (i32[N], i32[N, L] of several labels, or f32[N, 1] for regression) and, where the
    Schema names a weight column, `weight f32[N]`. Cells are texts, numbers or None; a missing number is NaN, a missing
    or unknown category 0. Numbers lose `Column.offset`, and labels `Target.offset`, in f64. DataError naming every
    absent column, and `place` and value of bad cells; with `image_needed` a missing image is one.
    """
    rows = _row_count(columns)
    columns = with_left_out(schema, columns)
    if absent := missing_columns(schema, columns):
        raise DataError([f"column '{name}': expected a value for every row, got no such column" for name in absent])
    bad: list[_Bad] = []
    values = _parse(schema, columns, bad)
    if label:
        values |= _parse_target(schema, columns, bad)
        if schema.weight_column is not None:
            values[schema.weight_column] = _parse_weight(schema, columns, bad)
    batch = assemble(schema, values, rows, label=label)
    if schema.image is not None:
        if image_needed:
            _report_missing(schema, schema.image, columns, bad)
        batch["image"], batch["image_present"] = _images(schema, schema.image, columns, rows, bad)
    _refuse(bad, place)
    return batch


def assemble(schema: Schema, values: Columns, rows: int, *, label: bool) -> Batch:
    """Return the Batch of parsed columns: f64[N] numbers and days since 1970-01-01, i32[N] codes; see `encode`.

    With `label` they hold the target (f64 numbers, or i32 classes) and the weight too.
    """
    batch: Batch = {}
    if schema.numeric_features:
        batch["numeric"] = _numeric(schema, values, rows)
    if schema.category_columns:
        batch["category"] = np.stack([values[column.name] for column in schema.category_columns], axis=1)
    if label:
        batch["label"] = _label(schema.target, values)
        if schema.weight_column is not None:
            batch["weight"] = values[schema.weight_column].astype(np.float32)
    return batch


def encode_label(schema: Schema, columns: Columns) -> np.ndarray:
    """Return `Batch["label"]` of every row; DataError naming row and value."""
    bad: list[_Bad] = []
    values = _parse_target(schema, columns, bad)
    _refuse(bad)
    return _label(schema.target, values)


def missing_columns(schema: Schema, names: Iterable[str]) -> tuple[str, ...]:
    """Return the feature and image columns that are not among `names`, though they have to be; see `left_out`."""
    given = {*names, *left_out(schema, names)}
    return tuple(name for name in _needed(schema) if name not in given)


def left_out(schema: Schema, names: Iterable[str]) -> tuple[str, ...]:
    """Return the columns that may be left out of rows with these: any image beside something else, or all features.

    One feature column alone may not be: its name may be misspelt.
    """
    if schema.image is None:
        return ()
    given, features = set(names), [column.name for column in schema.features]
    images = [name for name in schema.image.columns if name not in given]
    some_features = any(name in given for name in features)
    if len(images) == len(schema.image.columns) and not some_features:
        return ()
    return (*images, *(() if some_features else features))


def with_left_out(schema: Schema, columns: Columns) -> Columns:
    """Return the Columns with those that are `left_out`, missing in every row."""
    rows = len(next(iter(columns.values()), ()))
    return columns | {name: np.full(rows, None, object) for name in left_out(schema, columns)}


def known_columns(schema: Schema) -> tuple[str, ...]:
    """Return the names of all columns that the training data had, those that are needed first."""
    extra = (*schema.target.columns, schema.id_column, schema.weight_column)
    names = [*_needed(schema), *(c.name for c in schema.columns), *(name for name in extra if name)]
    return tuple(dict.fromkeys(names))


def check_columns(schema: Schema, names: Iterable[str], *, where: str) -> tuple[str, ...]:
    """Return those of `names` that are known but are no features, and so are ignored (target, identifier, text ...).

    DataError naming every absent feature column and the first SHOWN unknown columns at once.
    """
    names = tuple(names)
    needed, known = _needed(schema), known_columns(schema)
    may_be_empty = {column.name for column in schema.features if not column.required}
    problems = [
        f"{where}: expected column '{name}', got none of that name; add it"
        + (", empty (in JSON null) where its value is not known" if name in may_be_empty else "")
        for name in missing_columns(schema, names)
    ]
    unknown = [name[:LONGEST_NAME] for name in names if name not in known]
    problems += [
        f"{where}: unknown column '{name}'; rename or remove it{did_you_mean(name, known)}" for name in unknown[:SHOWN]
    ]
    if len(unknown) > SHOWN:
        problems.append(f"{where}: unknown columns: {len(unknown) - SHOWN:,} more")
    if problems:
        raise DataError(problems)
    return tuple(name for name in names if name not in needed)


def columns_from_rows(rows: Sequence[Mapping[str, Any]]) -> Columns:
    """Return rows (mappings by column name) as Columns; DataError naming row and column where one is absent."""
    names = dict.fromkeys(name for row in rows for name in row)
    absent = [(i, name) for i, row in enumerate(rows, 1) if len(row) != len(names) for name in names if name not in row]
    if absent:
        told = [(i, f"expected a value for '{name}' as in other rows, got none") for i, name in absent[:SHOWN]]
        _refuse([_Bad("", len(absent), told)], lambda column, row: f"row {row}")
    columns = {name: np.empty(len(rows), dtype=object) for name in names}
    for name, cells in columns.items():
        for i, row in enumerate(rows):
            cells[i] = row[name]
    return columns


def _needed(schema: Schema) -> tuple[str, ...]:
    return tuple(c.name for c in schema.features) + (schema.image.columns if schema.image else ())


def _row_count(columns: Columns) -> int:
    lengths = {name: len(cells) for name, cells in columns.items()}
    if len(set(lengths.values())) != 1:
        raise DataError(f"expected columns of equal length, got {lengths}")
    return next(iter(lengths.values()))


def _refuse(bad: list[_Bad], place: Place = in_table) -> None:
    lines = [f"{place(one.column, row)}: {told}" for one in bad for row, told in one.told][:SHOWN]
    more = sum(one.cells for one in bad) - len(lines)
    if lines:
        raise DataError([*lines, f"and {more:,} more bad cells"] if more else lines)


def _report(name: str, cells: np.ndarray, wrong: np.ndarray, expected: str, bad: list[_Bad], instead: str = "") -> None:
    rows = np.flatnonzero(wrong)
    told = [(int(row) + 1, f"expected {expected}, got {_shown(cells[row])}{instead}") for row in rows[:SHOWN]]
    bad.append(_Bad(name, len(rows), told))


def _shown(cell: Any) -> str:
    if cell is None:
        return "a missing cell"
    cell = cell.item() if isinstance(cell, np.generic) else cell
    text = cell_text(cell) if isinstance(cell, int) else repr(cell)
    return text if len(text) <= 80 else text[:77] + "..."


def _parse(schema: Schema, columns: Columns, bad: list[_Bad]) -> Columns:
    """Return the numbers, days and codes of the feature columns."""
    values: Columns = {}
    numeric = schema.of_kind("numeric")
    plain = plain_numbers([columns[column.name] for column in numeric], schema.missing_markers)
    for i, column in enumerate(numeric):
        if plain is not None:
            values[column.name] = plain[i]
            continue
        cells = columns[column.name]
        values[column.name], wrong = parse_numbers(cells, schema.missing_markers)
        _report(column.name, cells, wrong, "a number within ±3.4e38", bad)
    for column in schema.of_kind("datetime"):
        cells = columns[column.name]
        values[column.name], wrong = parse_dates(cells, schema.missing_markers, column.datetime_format)
        _report(column.name, cells, wrong, f"a date ({_format_name(column)})", bad)
    for column in schema.category_columns:
        values[column.name] = _category_codes(column, columns[column.name], bad)
    return values


def _numeric(schema: Schema, values: Columns, rows: int) -> np.ndarray:
    found = np.empty((rows, len(schema.numeric_features)), dtype=np.float32)
    at = 0
    for column in schema.of_kind("numeric"):
        found[:, at] = values[column.name] - column.offset
        at += 1
    for column in schema.of_kind("datetime"):
        found[:, at : at + 4] = _date_parts(values[column.name], column.offset)
        at += 4
    return found


def _format_name(column: Column) -> str:
    return "ISO 8601" if column.datetime_format == "iso" else column.datetime_format


def _date_parts(days: np.ndarray, offset: float) -> np.ndarray:
    """Return f64[N, 4], DATETIME_PARTS of days since 1970-01-01 (a Thursday): elapsed, then fractions in [0, 1)."""
    whole = np.floor(days)
    dates = np.where(np.isnan(days), 0, whole).astype("datetime64[D]")
    years = dates.astype("datetime64[Y]")
    first = years.astype("datetime64[D]")
    year_days = ((years + np.timedelta64(1, "Y")).astype("datetime64[D]") - first).astype(np.float64)
    day_of_year = (dates - first).astype(np.float64) / year_days + 0.0 * days
    cycles = np.stack([days - whole, (whole + 3) % 7 / 7, day_of_year], axis=1)
    return np.column_stack([days - offset, np.minimum(cycles, _BELOW_ONE)])


def category_codes(column: Column, cells: np.ndarray) -> np.ndarray:
    """Return i32[N]: the place of each cell in the vocabulary, counted from 1; 0 for any other."""
    return _category_codes(column, cells, [])


def class_codes(target: Target, column: str, cells: np.ndarray) -> np.ndarray:
    """Return i32[N]: the class of each cell of a column of the target, -1 for what is none; of a label 0 or 1."""
    return category_codes(_as_column(target, column), cells) - 1


def _as_column(target: Target, column: str) -> Column:
    return Column(name=column, kind="categorical", vocabulary=target.texts(column))


def _label(target: Target, values: Columns) -> np.ndarray:
    """Return `Batch["label"]` of the parsed columns of the target."""
    match target.task:
        case "classification":
            return values[target.column]
        case "regression":
            return (values[target.column] - target.offset).astype(np.float32)[:, None]
        case "multilabel":
            return np.stack([values[name] for name in target.columns], axis=1)
        case _:
            assert_never(target.task)


def _category_codes(column: Column, cells: np.ndarray, bad: list[_Bad]) -> np.ndarray:
    codes = {text: i for i, text in enumerate(column.vocabulary, 1)}
    values = cells.tolist()
    if not set(map(type, values)) <= {str}:
        wrong = np.array([not isinstance(v, str | bool | int | float | np.generic | None) for v in values], bool)
        _report(column.name, cells, wrong, "a text, a number or a boolean", bad)
        found = [0 if w else _code(v, column, codes) for v, w in zip(values, wrong, strict=True)]
    elif column.kind == "boolean":
        known = {text: _code(text, column, codes) for text in set(values)}
        found = list(map(known.__getitem__, values))
    else:
        found = list(map(codes.get, values, repeat(0)))
    return np.array(found, dtype=np.int32)


def _code(cell: Any, column: Column, codes: dict[str, int]) -> int:
    """Return the code of one cell; booleans match `true`, `yes`, `t`, `y` and their like in any case, 1 is 1.0."""
    if isinstance(cell, bool | np.bool_):
        words = _TRUE if cell else _FALSE
        return next((code for text, code in codes.items() if text.strip().casefold() in words), 0)
    text = cell_text(cell)
    if column.kind == "boolean":
        folded = text.strip().casefold()
        return next((code for known, code in codes.items() if known.strip().casefold() == folded), 0)
    if isinstance(cell, str) or not text or text in codes:
        return codes.get(text, 0)
    # JavaScript writes 1.0 as 1, and a data frame with a gap makes 1 a 1.0: one number, one category.
    return codes.get(text.removesuffix(".0") if text.endswith(".0") else f"{text}.0", 0)


def _images(
    schema: Schema, spec: ImageSpec, columns: Columns, rows: int, bad: list[_Bad]
) -> tuple[np.ndarray, np.ndarray]:
    """Return (u8[N, I, H, W, 3], f32[N, I]); a missing cell is a black image that is not present."""
    from mmjax.data.decode import decode_images

    gaps = missing_texts(schema.missing_markers)
    pixels, present = [], np.ones((rows, len(spec.columns)), dtype=np.float32)
    for i, name in enumerate(spec.columns):
        cells = columns[name]
        given = np.array([not _no_image(cell, gaps) for cell in cells], dtype=bool)
        wrong = np.array([not isinstance(cell, str | os.PathLike | bytes | np.ndarray) for cell in cells], bool)
        wrong &= given
        _report(name, cells, wrong, "an image (its path, bytes or pixels)", bad)
        given &= ~wrong
        at = np.flatnonzero(given)
        decoded, faults = decode_images(spec, [cells[row] for row in at])
        told = [(int(at[k]) + 1, f"{_image_name(cells[at[k]])}{why}") for k, why in faults[:SHOWN]]
        bad.append(_Bad(name, len(faults), told))
        present[:, i] = given
        pixels.append(decoded if given.all() else _scatter(decoded, at, rows))
    return pixels[0][:, None] if len(pixels) == 1 else np.stack(pixels, axis=1), present


def _report_missing(schema: Schema, spec: ImageSpec, columns: Columns, bad: list[_Bad]) -> None:
    gaps = missing_texts(schema.missing_markers)
    for name in spec.columns:
        missing = np.array([_no_image(cell, gaps) for cell in columns[name]], dtype=bool)
        _report(name, columns[name], missing, NEEDED_IMAGE, bad, instead="; give one, or leave the row out")


def _scatter(decoded: np.ndarray, at: np.ndarray, rows: int) -> np.ndarray:
    images = np.zeros((rows, *decoded.shape[1:]), dtype=np.uint8)
    images[at] = decoded
    return images


def _no_image(cell: Any, gaps: frozenset[str]) -> bool:
    return (cell is None or isinstance(cell, str | float)) and cell_text(cell).strip() in gaps


def _image_name(cell: Any) -> str:
    return f"{cell}: " if isinstance(cell, str) else ""


def _parse_target(schema: Schema, columns: Columns, bad: list[_Bad]) -> Columns:
    """Return the classes, i32[N], of each column of the target, or the numbers of a regression target, f64[N]."""
    target = schema.target
    if absent := [name for name in target.columns if name not in columns]:
        raise DataError([f"expected the target column '{name}', got {', '.join(columns)}" for name in absent])
    if target.task == "regression":
        cells = columns[target.column]
        numbers, wrong = parse_numbers(cells, schema.missing_markers)
        _report(target.column, cells, wrong | np.isnan(numbers), "a number (the target)", bad)
        return {target.column: numbers}
    found = {}
    for name in target.columns:
        codes = _category_codes(_as_column(target, name), columns[name], bad)
        _report(name, columns[name], codes == 0, f"one of the classes {_listed(target.texts(name))}", bad)
        found[name] = codes - 1
    return found


def _listed(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:SHOWN]) + (f" and {len(classes) - SHOWN} more" if len(classes) > SHOWN else "")


def _parse_weight(schema: Schema, columns: Columns, bad: list[_Bad]) -> np.ndarray:
    name = schema.weight_column or ""
    if name not in columns:
        raise DataError(f"expected the weight column '{name}', got {', '.join(columns)}")
    numbers, _ = parse_numbers(columns[name], schema.missing_markers)
    _report(name, columns[name], ~(numbers >= 0), "a weight of 0 or more", bad)
    return numbers
