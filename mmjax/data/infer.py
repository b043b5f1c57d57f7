"""What the columns of a table are: kinds and classes from all rows, vocabularies and offsets from training rows."""

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from mmjax.config import DEFAULT_MISSING_MARKERS, Inference, Task
from mmjax.data.cells import LEADING_ZERO, floats, missing_mask, missing_texts, parse_dates, parse_numbers, texts
from mmjax.data.kinds import MOSTLY, Verdict, decide, gather
from mmjax.data.schema_file import DeclaredColumn, DeclaredSchema
from mmjax.errors import DataError, did_you_mean
from mmjax.schema import Column, Columns, Schema, Target

EXACT = 2.0**24
"""Whole numbers up to here are exact in f32."""
SPREADS_FROM_ZERO = 1024.0
"""Numbers farther from zero than so many standard deviations lose 10 of f32's 24 bits for telling them apart."""
SHOWN = 5
"""How many places or values a message names."""


def infer_schema(
    columns: Columns,
    *,
    target_column: str,
    task: Task | UnsetType = UNSET,
    positive_class: str | None = None,
    id_column: str | None = None,
    ignore_columns: Sequence[str] = (),
    weight_column: str | None = None,
    missing_markers: tuple[str, ...] = DEFAULT_MISSING_MARKERS,
    inference: Inference = Inference(),
    declared: DeclaredSchema | None = None,
    exclude: Sequence[str] = (),
    lines: np.ndarray | None = None,
) -> Schema:
    """Return the Schema of all rows, without vocabularies: every column in order with its kind and the reason.

    Target, weight, `ignore_columns` and `exclude` (columns with another use, as a split column) have the kind ignored.
    `lines` (i64[N]) makes messages name lines of the file. DataError with everything wrong at once.
    """
    named = {"target_column": target_column, "id_column": id_column, "weight_column": weight_column}
    _check_names(columns, named, ignore_columns, exclude, declared)
    known = declared.columns if declared else {}
    roles = _roles(target_column, weight_column, id_column, ignore_columns, exclude)
    found = []
    for name, cells in columns.items():
        verdict = roles.get(name) or decide(gather(name, texts(cells), missing_markers), known.get(name), inference)
        found.append(_column(name, verdict, known.get(name)))
    problems = _feature_problems(found) + _weight_problems(weight_column, columns, missing_markers, lines)
    try:
        target = infer_target(
            columns[target_column],
            target_column,
            task=task,
            positive_class=positive_class,
            missing_markers=missing_markers,
            inference=inference,
            declared=known.get(target_column),
            lines=lines,
        )
    except DataError as error:
        raise DataError([*problems, *error.problems]) from error
    if problems:
        raise DataError(problems)
    markers = tuple(missing_markers)
    return Schema(
        target=target, columns=tuple(found), missing_markers=markers, id_column=id_column, weight_column=weight_column
    )


def infer_target(
    cells: np.ndarray,
    column: str,
    *,
    task: Task | UnsetType = UNSET,
    positive_class: str | None = None,
    missing_markers: tuple[str, ...] = DEFAULT_MISSING_MARKERS,
    inference: Inference = Inference(),
    declared: DeclaredColumn | None = None,
    lines: np.ndarray | None = None,
) -> Target:
    """Return the Target of these cells: the task, its reason, and the classes exactly as written.

    Classes are in the order of a declared enum, else sorted as numbers where all are numbers, else as texts. DataError
    for missing cells, a single class, a positive class that is none, a regression target that is not a number.
    """
    where = f"target column '{column}'"
    values = texts(cells)
    gaps = missing_mask(values, missing_markers)
    if gaps.any():
        at = _places(np.flatnonzero(gaps), lines)
        raise DataError(f"{where}: expected a value in every row, got {gaps.sum():,} missing ({at}); remove these rows")
    distinct = list(dict.fromkeys(values))
    numbers = floats(distinct)
    chosen, reason = _task(where, distinct, numbers, task, declared, inference)
    if chosen == "regression":
        classes = ()
        problems = _regression(where, values, numbers, positive_class, lines)
    else:
        classes = declared.enum if declared and declared.enum else _ordered(distinct, numbers)
        problems = _class_problems(where, distinct, classes, positive_class)
    if problems:
        raise DataError(problems)
    return Target(column=column, task=chosen, classes=classes, positive_class=positive_class, reason=reason)


def fit_vocabulary(schema: Schema, columns: Columns) -> Schema:
    """Return the Schema with vocabularies and offsets of these rows (the training rows); a fixed vocabulary stays."""
    fitted = tuple(_fit_column(schema, column, columns) for column in schema.columns)
    target = schema.target
    if target.task == "regression":
        numbers, _ = parse_numbers(columns[target.column], schema.missing_markers)
        target = msgspec.structs.replace(target, offset=_offset(numbers[~np.isnan(numbers)]))
    return msgspec.structs.replace(schema, columns=fitted, target=target)


def _roles(
    target: str, weight: str | None, id_column: str | None, ignore_columns: Sequence[str], exclude: Sequence[str]
) -> dict[str, Verdict]:
    """Return the columns whose place the config decides, the strongest claim last."""
    ignored = dict.fromkeys(exclude, "has another use in the config")
    ignored |= dict.fromkeys(ignore_columns, "in ignore_columns")
    ignored |= {weight: "the sample weights"} if weight is not None else {}
    roles = {name: Verdict("ignored", reason) for name, reason in {**ignored, target: "the target"}.items()}
    return roles | ({id_column: Verdict("identifier", "the id column")} if id_column is not None else {})


def _check_names(
    columns: Columns,
    named: dict[str, str | None],
    ignore_columns: Sequence[str],
    exclude: Sequence[str],
    declared: DeclaredSchema | None,
) -> None:
    """Raise DataError where the config or the schema file names a column that is not there, or one for two uses."""
    used = [(key, name) for key, name in named.items() if name is not None]
    used += [("ignore_columns", name) for name in ignore_columns] + [("split.column", name) for name in exclude]
    problems = [
        f"{key}: no column '{name}'{did_you_mean(name, columns)}; the columns are {', '.join(columns)}"
        for key, name in used
        if name not in columns
    ]
    for name in dict.fromkeys(name for _, name in used):
        keys = {key: None for key, other in used if other == name}
        if len(keys) > 1 and not keys.keys() <= {"id_column", "ignore_columns", "split.column"}:
            problems.append(f"column '{name}': expected one use, got {' and '.join(keys)}")
    if declared is not None:
        unknown = [name for name in declared.columns if name not in columns]
        problems += [f"{declared.path}: no column '{n}'{did_you_mean(n, columns)} in the table" for n in unknown]
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


def _weight_problems(
    name: str | None, columns: Columns, markers: tuple[str, ...], lines: np.ndarray | None
) -> list[str]:
    if name is None:
        return []
    numbers, _ = parse_numbers(columns[name], markers)
    bad = np.flatnonzero(~(numbers >= 0))
    if len(bad):
        examples = _examples(texts(columns[name]), bad)
        return [f"weight_column '{name}': expected numbers of 0 or more, got {examples} ({_places(bad, lines)})"]
    return [] if numbers.any() else [f"weight_column '{name}': expected a weight above 0, got only zeros"]


def _task(
    where: str,
    distinct: list[str],
    numbers: np.ndarray,
    task: Task | UnsetType,
    declared: DeclaredColumn | None,
    inference: Inference,
) -> tuple[Task, str]:
    """Return the task and the rule that decided it."""
    if task is not UNSET:
        return task, "task is set in the config"
    if declared is not None and (said := _declared_task(declared)) is not None:
        return said, "the schema file says so"
    count = f"{len(distinct):,} distinct values"
    gaps = np.isnan(numbers)
    if gaps.any() and (~gaps).mean() >= MOSTLY and len(distinct) > inference.max_integer_classes:
        wrong = _examples(distinct, np.flatnonzero(gaps))
        raise DataError(f"{where}: all but {gaps.sum()} of {count} are numbers: {wrong}; mend these or set task")
    if gaps.any():
        return "classification", f"text, {count}"
    if LEADING_ZERO.search("\n".join(distinct)):
        return "classification", f"numbers with leading zeros are codes, {count}"
    if (numbers != np.floor(numbers)).any():
        return "regression", f"numbers, not all whole, {count}; set task: classification to predict classes"
    if len(distinct) > inference.max_integer_classes:
        limit = f"more than {inference.max_integer_classes}"
        return "regression", f"whole numbers, {count}, {limit}; set task: classification to predict classes"
    limit = f"at most {inference.max_integer_classes}"
    return "classification", f"whole numbers, {count}, {limit}; set task: regression to predict a number"


def _declared_task(declared: DeclaredColumn) -> Task | None:
    if declared.enum or declared.kind in ("categorical", "boolean") or declared.type in ("string", "boolean"):
        return "classification"
    return "regression" if declared.kind == "numeric" or declared.type == "number" else None


def _regression(
    where: str, values: list[str], numbers: np.ndarray, positive_class: str | None, lines: np.ndarray | None
) -> list[str]:
    """Return what keeps these cells from being a regression target; `numbers` are those of the distinct values."""
    problems = []
    if np.isnan(numbers).any():
        bad = np.flatnonzero(np.isnan(floats(values)))
        problems.append(f"{where}: expected numbers, got {_examples(values, bad)} ({_places(bad, lines)})")
    elif len(numbers) < 2:
        problems.append(f"{where}: expected different numbers, got always {values[0]!r}")
    if positive_class is not None:
        problems.append("positive_class: expected only with classification, got a regression target")
    return problems


def _ordered(distinct: Iterable[str], numbers: np.ndarray) -> tuple[str, ...]:
    """Return the texts sorted as numbers where all are numbers, else as texts."""
    if np.isnan(numbers).any():
        return tuple(sorted(distinct))
    return tuple(text for _, text in sorted(zip(numbers.tolist(), distinct, strict=True)))


def _class_problems(where: str, distinct: list[str], classes: tuple[str, ...], positive: str | None) -> list[str]:
    problems = []
    present = [text for text in distinct if text in classes]
    if len(present) < 2:
        problems.append(f"{where}: expected at least two classes, got {', '.join(map(repr, present)) or 'none'}")
    if positive is None:
        return problems
    if positive not in classes:
        listed = ", ".join(classes[:20])
        problems.append(f"positive_class: expected one of {listed}, got '{positive}'{did_you_mean(positive, classes)}")
    elif len(classes) > 2:
        problems.append(f"positive_class: expected only with two classes, got {len(classes)}")
    return problems


def _examples(values: Sequence[str], at: np.ndarray) -> str:
    distinct = list(dict.fromkeys(values[i] for i in at))
    return ", ".join(map(repr, distinct[:SHOWN])) + (" ..." if len(distinct) > SHOWN else "")


def _places(rows: np.ndarray, lines: np.ndarray | None) -> str:
    """Return the first rows in words: lines of the file where known, else rows counted from 1."""
    unit, shown = ("row", rows + 1) if lines is None else ("line", lines[rows])
    more = f" and {len(shown) - SHOWN:,} more" if len(shown) > SHOWN else ""
    return f"{unit} {', '.join(map(str, shown[:SHOWN]))}{more}"


def _fit_column(schema: Schema, column: Column, columns: Columns) -> Column:
    match column.kind:
        case "categorical" | "boolean" if not column.fixed_vocabulary:
            found = _vocabulary(column, texts(columns[column.name]), schema.missing_markers)
            return msgspec.structs.replace(column, vocabulary=found)
        case "numeric":
            numbers, _ = parse_numbers(columns[column.name], schema.missing_markers)
            return msgspec.structs.replace(column, offset=_offset(numbers[~np.isnan(numbers)]))
        case "datetime":
            days, _ = parse_dates(columns[column.name], schema.missing_markers, column.datetime_format)
            days = days[~np.isnan(days)]
            return msgspec.structs.replace(column, offset=float(np.floor(np.median(days))) if len(days) else 0.0)
        case _:
            return column


def _vocabulary(column: Column, cells: list[str], markers: tuple[str, ...]) -> tuple[str, ...]:
    gaps = missing_texts(markers)
    distinct = [cell for cell in dict.fromkeys(cells) if cell.strip() not in gaps]
    if column.kind == "boolean":
        distinct = list({cell.strip().casefold(): cell.strip() for cell in sorted(distinct, reverse=True)}.values())
    return _ordered(distinct, floats(distinct))


def _offset(numbers: np.ndarray) -> float:
    """Return what to subtract in f64 so that f32 keeps the differences between these numbers: the median, or 0."""
    if not len(numbers):
        return 0.0
    median, spread = float(np.median(numbers)), float(np.std(numbers))
    if (numbers == np.floor(numbers)).all():
        lossy = np.abs(numbers).max() > EXACT and abs(median) > spread
        return float(np.round(median)) if lossy else 0.0
    return median if abs(median) > SPREADS_FROM_ZERO * spread > 0 else 0.0
