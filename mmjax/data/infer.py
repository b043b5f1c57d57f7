"""What the columns of a table are: kinds from all rows, vocabularies and offsets from training rows."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from mmjax.config import DEFAULT_MISSING_MARKERS, Inference, Task
from mmjax.data.cells import missing_texts, ordered, parse_dates, parse_numbers, texts
from mmjax.data.kinds import Verdict, decide
from mmjax.data.schema_file import DeclaredColumn, DeclaredSchema
from mmjax.data.survey import Keep, Seen, see
from mmjax.data.target import examples, places, target_of
from mmjax.errors import DataError, did_you_mean
from mmjax.schema import NAMES_IMAGES, Column, Columns, Schema

EXACT = 2.0**24
"""Whole numbers up to here are exact in f32."""
SPREADS_FROM_ZERO = 1024.0
"""Numbers farther from zero than so many standard deviations lose 10 of f32's 24 bits for telling them apart."""


def infer_schema(
    columns: Columns | Mapping[str, Seen],
    *,
    target_column: str | tuple[str, ...],
    task: Task | UnsetType = UNSET,
    positive_class: str | None = None,
    id_column: str | None = None,
    ignore_columns: Sequence[str] = (),
    weight_column: str | None = None,
    missing_markers: tuple[str, ...] = DEFAULT_MISSING_MARKERS,
    inference: Inference = Inference(),
    declared: DeclaredSchema | None = None,
    exclude: Sequence[str] = (),
    images: Sequence[str] = (),
    lines: np.ndarray | None = None,
) -> Schema:
    """Return the Schema of all rows, without vocabularies: every column in order with its kind and the reason.

    Several target columns are labels, see `infer_labels`.
    Target, weight, `ignore_columns`, `exclude` (columns with another use, as a split column) and `images` (columns that
    name image files) have the kind ignored. Where there are images no other column needs to be learnt from.
    `columns` are cells, or what was seen of them. `lines` (i64[N]) makes messages name lines of the file. DataError
    with everything wrong at once.
    """
    targets = target_column if isinstance(target_column, tuple) else (target_column,)
    named = [("target_column", name) for name in targets]
    named += [("id_column", id_column), ("weight_column", weight_column)]
    _check_names(columns, named, ignore_columns, exclude, images, declared)
    known = declared.columns if declared else {}
    roles = _roles(targets, weight_column, id_column, ignore_columns, exclude, images)
    keep = {**dict.fromkeys(targets, Keep(texts=True)), weight_column: Keep(numbers=True)}
    seen = {
        name: cells if isinstance(cells, Seen) else see(name, cells, missing_markers, keep.get(name, Keep()))
        for name, cells in columns.items()
    }
    found = [
        _column(name, roles.get(name) or decide(column.facts, known.get(name), inference), known.get(name))
        for name, column in seen.items()
    ]
    problems = [] if images else _feature_problems(found)
    problems += _weight_problems(seen[weight_column], lines) if weight_column else []
    try:
        target = target_of(seen, target_column, task, positive_class, known, inference, lines)
    except DataError as error:
        raise DataError([*problems, *error.problems]) from error
    if problems:
        raise DataError(problems)
    markers = tuple(missing_markers)
    return Schema(
        target=target, columns=tuple(found), missing_markers=markers, id_column=id_column, weight_column=weight_column
    )


def fit_vocabulary(schema: Schema, columns: Columns) -> Schema:
    """Return the Schema with vocabularies and offsets of these rows (the training rows); a fixed vocabulary stays."""

    def learn_from(column: Column) -> Sequence[str] | np.ndarray:
        cells = columns[column.name]
        match column.kind:
            case "categorical" | "boolean":
                return texts(cells)
            case "datetime":
                return parse_dates(cells, schema.missing_markers, column.datetime_format)[0]
            case _:
                return parse_numbers(cells, schema.missing_markers)[0]

    return fit_schema(schema, learn_from)


def fit_schema(schema: Schema, learn_from: Callable[[Column], Sequence[str] | np.ndarray]) -> Schema:
    """Return the Schema with vocabularies and offsets of what `learn_from` returns of the training rows of a column.

    These are texts of a categorical or boolean column, in any order and repeated or not; of others numbers or days
    since 1970-01-01, f64[N], NaN where missing. A regression target is asked for as a numeric column.
    """
    fitted = tuple(_fit_column(schema, column, learn_from) for column in schema.columns)
    target = schema.target
    if target.task == "regression":
        numbers = learn_from(Column(name=target.column, kind="numeric"))
        target = msgspec.structs.replace(target, offset=_offset(_present(numbers)))
    return msgspec.structs.replace(schema, columns=fitted, target=target)


def _roles(
    targets: Sequence[str],
    weight: str | None,
    id_column: str | None,
    ignore_columns: Sequence[str],
    exclude: Sequence[str],
    images: Sequence[str],
) -> dict[str, Verdict]:
    """Return the columns whose place the config decides, the strongest claim last."""
    ignored = dict.fromkeys(exclude, "has another use in the config")
    ignored |= dict.fromkeys(ignore_columns, "in ignore_columns")
    ignored |= dict.fromkeys(images, NAMES_IMAGES)
    ignored |= {weight: "the sample weights"} if weight is not None else {}
    ignored |= dict.fromkeys(targets, "the target" if len(targets) == 1 else "a label of the target")
    roles = {name: Verdict("ignored", reason) for name, reason in ignored.items()}
    return roles | ({id_column: Verdict("identifier", "the id column")} if id_column is not None else {})


def _check_names(
    columns: Collection[str],
    named: Sequence[tuple[str, str | None]],
    ignore_columns: Sequence[str],
    exclude: Sequence[str],
    images: Sequence[str],
    declared: DeclaredSchema | None,
) -> None:
    """Raise DataError where the config or the schema file names a column that is not there, or one for two uses."""
    used = [(key, name) for key, name in named if name is not None]
    used += [("ignore_columns", name) for name in ignore_columns] + [("split.column", name) for name in exclude]
    used += [("images.columns", name) for name in images]
    problems = [
        f"{key}: no column '{name}'; the columns are {', '.join(columns)}{did_you_mean(name, columns)}"
        for key, name in used
        if name not in columns
    ]
    for name in dict.fromkeys(name for _, name in used):
        keys = {key: None for key, other in used if other == name}
        if len(keys) > 1 and not keys.keys() <= {"id_column", "ignore_columns", "split.column"}:
            problems.append(f"column '{name}': expected one use, got {' and '.join(keys)}")
    if declared is not None:
        unknown = [name for name in declared.columns if name not in columns]
        problems += [f"{declared.path}: no column '{n}' in the table{did_you_mean(n, columns)}" for n in unknown]
    if problems:
        raise DataError(problems)


def _feature_problems(columns: Iterable[Column]) -> list[str]:
    if any(column.kind in ("numeric", "categorical", "boolean", "datetime") for column in columns):
        return []
    left_out = "; ".join(f"'{column.name}' is {column.kind} ({column.reason})" for column in columns)
    return [f"expected at least one column to learn from, got none: {left_out}"]


def _column(name: str, verdict: Verdict, declared: DeclaredColumn | None) -> Column:
    column = Column(name=name, kind=verdict.kind, reason=verdict.reason, datetime_format=verdict.datetime_format)
    if declared is None:
        return column
    fixed = bool(declared.enum) and verdict.kind in ("categorical", "boolean")
    return msgspec.structs.replace(
        column,
        vocabulary=declared.enum if fixed else (),
        fixed_vocabulary=fixed,
        integer=declared.type == "integer" and not declared.enum,
        minimum=declared.minimum,
        maximum=declared.maximum,
        pattern=declared.pattern,
        required=declared.required,
    )


def _weight_problems(seen: Seen, lines: np.ndarray | None) -> list[str]:
    numbers = seen.numbers().read()
    bad = np.flatnonzero(~(numbers >= 0))
    where = f"weight_column '{seen.facts.name}'"
    if len(bad):
        return [f"{where}: expected numbers of 0 or more, got {examples(seen, bad)} ({places(bad, lines)})"]
    return [] if numbers.any() else [f"{where}: expected a weight above 0, got only zeros"]


def _fit_column(schema: Schema, column: Column, learn_from: Callable[[Column], Sequence[str] | np.ndarray]) -> Column:
    match column.kind:
        case "categorical" | "boolean" if not column.fixed_vocabulary:
            found = _vocabulary(column, learn_from(column), schema.missing_markers)
            return msgspec.structs.replace(column, vocabulary=found)
        case "numeric":
            return msgspec.structs.replace(column, offset=_offset(_present(learn_from(column))))
        case "datetime":
            days = _present(learn_from(column))
            return msgspec.structs.replace(column, offset=float(np.floor(np.median(days))) if len(days) else 0.0)
        case _:
            return column


def _present(values: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return the numbers that are not NaN, f64."""
    numbers = np.asarray(values, np.float64)
    gaps = np.isnan(numbers)
    return numbers[~gaps] if gaps.any() else numbers


def _vocabulary(column: Column, cells: Iterable[str], markers: tuple[str, ...]) -> tuple[str, ...]:
    gaps = missing_texts(markers)
    distinct = [cell for cell in dict.fromkeys(cells) if cell.strip() not in gaps]
    if column.kind == "boolean":
        distinct = list({cell.strip().casefold(): cell.strip() for cell in sorted(distinct, reverse=True)}.values())
    return ordered(distinct)


def _offset(numbers: np.ndarray) -> float:
    """Return what to subtract in f64 so that f32 keeps the differences between these numbers: the median, or 0."""
    if not len(numbers):
        return 0.0
    median, spread = float(np.median(numbers)), float(np.std(numbers))
    if (numbers == np.floor(numbers)).all():
        lossy = np.abs(numbers).max() > EXACT and abs(median) > spread
        return float(np.round(median)) if lossy else 0.0
    return median if abs(median) > SPREADS_FROM_ZERO * spread > 0 else 0.0
