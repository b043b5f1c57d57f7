"""What the columns of a table are: kinds and classes from all rows, vocabularies and offsets from training rows."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from mmjax.config import DEFAULT_MISSING_MARKERS, Inference, Task
from mmjax.data.cells import floats, missing_texts, parse_dates, parse_numbers, texts
from mmjax.data.facts import Facts
from mmjax.data.kinds import MOSTLY, Verdict, decide, written_numbers_doubt
from mmjax.data.labels import infer_labels
from mmjax.data.schema_file import DeclaredColumn, DeclaredSchema
from mmjax.data.survey import Keep, Seen, see
from mmjax.errors import DataError, did_you_mean
from mmjax.schema import NAMES_IMAGES, Column, Columns, Schema, Target

EXACT = 2.0**24
"""Whole numbers up to here are exact in f32."""
SPREADS_FROM_ZERO = 1024.0
"""Numbers farther from zero than so many standard deviations lose 10 of f32's 24 bits for telling them apart."""
SHOWN = 5
"""How many places or values a message names."""


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

    def target_of(seen: Seen, column: str, task: Task | UnsetType = "classification", positive: str | None = None):
        return infer_target(
            seen,
            column,
            task=task,
            positive_class=positive,
            missing_markers=missing_markers,
            inference=inference,
            declared=known.get(column),
            lines=lines,
        )

    try:
        if isinstance(target_column, tuple):
            target = infer_labels(seen, target_column, target_of, positive_class=positive_class, lines=lines)
        else:
            target = target_of(seen[target_column], target_column, task, positive_class)
    except DataError as error:
        raise DataError([*problems, *error.problems]) from error
    if problems:
        raise DataError(problems)
    markers = tuple(missing_markers)
    return Schema(
        target=target, columns=tuple(found), missing_markers=markers, id_column=id_column, weight_column=weight_column
    )


def infer_target(
    cells: np.ndarray | Seen,
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
    seen = cells if isinstance(cells, Seen) else see(column, cells, missing_markers)
    if missing := seen.facts.missing:
        at, advice = _places(np.flatnonzero(seen.missing()), lines), "remove these rows, or set on_invalid to drop"
        raise DataError(f"{where}: expected a value in every row, got {missing:,} missing ({at}); {advice}")
    chosen, reason = _task(where, seen.facts, task, declared, inference)
    if chosen == "regression":
        classes, problems = (), _regression(where, seen, positive_class, lines)
    else:
        distinct = seen.vocabulary().texts.tolist()
        classes = declared.enum if declared and declared.enum else _ordered(distinct, floats(distinct))
        problems = _class_problems(where, distinct, classes, positive_class) + _repeats(where, seen.facts)
    if problems:
        raise DataError(problems)
    return Target(column=column, task=chosen, classes=classes, positive_class=positive_class, reason=reason)


def infer_labels_of(columns: Columns, names: tuple[str, ...], *, positive_class: str | None = None) -> Target:
    """Return the Target of columns of cells that are labels, see `infer_labels`."""
    seen = {name: see(name, columns[name], DEFAULT_MISSING_MARKERS, Keep(texts=True)) for name in names}

    def classes_of(seen: Seen, column: str) -> Target:
        return infer_target(seen, column, task="classification")

    return infer_labels(seen, names, classes_of, positive_class=positive_class, lines=None)


def may_be_classes(facts: Facts, inference: Inference) -> bool:
    """Return whether a target with these facts may be inferred to be classified."""
    plain = facts.all_numbers and not facts.traits.coded
    return not plain or (facts.traits.whole and facts.distinct <= inference.max_integer_classes)


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
        return [f"{where}: expected numbers of 0 or more, got {_examples(seen, bad)} ({_places(bad, lines)})"]
    return [] if numbers.any() else [f"{where}: expected a weight above 0, got only zeros"]


def _task(
    where: str,
    facts: Facts,
    task: Task | UnsetType,
    declared: DeclaredColumn | None,
    inference: Inference,
) -> tuple[Task, str]:
    """Return the task and the rule that decided it."""
    if task is not UNSET:
        return task, "task is set in the config"
    if declared is not None and (said := _declared_task(declared)) is not None:
        return said, "the schema file says so"
    count = f"{facts.distinct:,} distinct values"
    if not facts.all_numbers:
        if facts.distinct > inference.max_integer_classes and (looks := written_numbers_doubt(facts)):
            raise DataError(f"{where}: {looks}, or set task: classification")
        if facts.numbers / facts.distinct < MOSTLY or facts.distinct <= inference.max_integer_classes:
            return "classification", f"text, {count}"
        wrong, others = _named(facts.traits.wrong), facts.distinct - facts.numbers
        raise DataError(f"{where}: all but {others} of {count} are numbers: {wrong}; mend these or set task")
    if facts.traits.coded:
        return "classification", f"numbers with leading zeros are codes, {count}"
    if not facts.traits.whole:
        return "regression", f"numbers, not all whole, {count}; set task: classification to predict classes"
    if facts.distinct > inference.max_integer_classes:
        limit = f"more than {inference.max_integer_classes}"
        return "regression", f"whole numbers, {count}, {limit}; set task: classification to predict classes"
    limit = f"at most {inference.max_integer_classes}"
    return "classification", f"whole numbers, {count}, {limit}; set task: regression to predict a number"


def _declared_task(declared: DeclaredColumn) -> Task | None:
    if declared.enum or declared.kind in ("categorical", "boolean") or declared.type in ("string", "boolean"):
        return "classification"
    return "regression" if declared.kind == "numeric" or declared.type == "number" else None


def _regression(where: str, seen: Seen, positive_class: str | None, lines: np.ndarray | None) -> list[str]:
    """Return what keeps these cells from being a regression target."""
    problems = []
    if not seen.facts.all_numbers:
        bad = np.flatnonzero(np.isnan(seen.numbers().read()))
        wrong = _named(seen.facts.traits.wrong)
        problems.append(f"{where}: expected numbers, got {wrong} ({_places(bad, lines)})")
    elif seen.facts.distinct < 2:
        problems.append(f"{where}: expected different numbers, got always {seen.facts.traits.first[0]!r}")
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


FEW_CLASSES = 10
"""Up to so many rows may each be of a class of its own."""


def _repeats(where: str, facts: Facts) -> list[str]:
    """Return that these are no classes: of more than `FEW_CLASSES` none has two rows, so none can be learnt."""
    if facts.distinct <= FEW_CLASSES or facts.distinct < facts.rows - facts.missing:
        return []
    advice = "set task: regression, or name another column" if facts.all_numbers else "name another column"
    return [f"{where}: expected values that repeat, got {facts.distinct:,} classes of one row each; {advice}"]


def _examples(seen: Seen, at: np.ndarray) -> str:
    """Return the first different cells of these rows in words; numbers where no texts are kept."""
    if seen.coded is None:
        return _named([f"{number:.17g}" for number in dict.fromkeys(seen.numbers().read()[at].tolist())])
    return _named(list(dict.fromkeys(seen.cells().read()[at])))


def _named(found: Sequence[str]) -> str:
    return ", ".join(map(repr, found[:SHOWN])) + (" ..." if len(found) > SHOWN else "")


def _places(rows: np.ndarray, lines: np.ndarray | None) -> str:
    """Return the first rows in words: lines of the file where known, else rows counted from 1."""
    unit, shown = ("row", rows + 1) if lines is None else ("line", lines[rows])
    more = f" and {len(shown) - SHOWN:,} more" if len(shown) > SHOWN else ""
    return f"{unit} {', '.join(map(str, shown[:SHOWN]))}{more}"


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
