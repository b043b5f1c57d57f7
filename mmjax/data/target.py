"""What the target of a table is: the task, the rule that decided it, the classes; and what keeps it from being one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import UNSET, UnsetType

from mmjax.config import DEFAULT_MISSING_MARKERS, Inference, Task
from mmjax.data.cells import ordered
from mmjax.data.facts import Facts
from mmjax.data.kinds import MOSTLY, written_numbers_doubt
from mmjax.data.labels import infer_labels
from mmjax.data.schema_file import DeclaredColumn
from mmjax.data.survey import Keep, Seen, see
from mmjax.errors import DataError, did_you_mean
from mmjax.schema import TASK_IS_SET, Columns, Target

SHOWN = 5
"""How many places or values a message names."""


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
        at, advice = places(np.flatnonzero(seen.missing()), lines), "remove these rows, or set on_invalid to drop"
        raise DataError(f"{where}: expected a value in every row, got {missing:,} missing ({at}); {advice}")
    chosen, reason = _task(where, seen.facts, task, declared, inference)
    if chosen == "regression":
        classes, problems = (), _regression(where, seen, positive_class, lines)
    else:
        distinct = seen.vocabulary().texts.tolist()
        classes = declared.enum if declared and declared.enum else ordered(distinct)
        problems = _class_problems(where, distinct, classes, positive_class) + _repeats(where, seen.facts)
    if problems:
        raise DataError(problems)
    return Target(column=column, task=chosen, classes=classes, positive_class=positive_class, reason=reason)


def target_of(
    seen: Mapping[str, Seen],
    target_column: str | tuple[str, ...],
    task: Task | UnsetType,
    positive_class: str | None,
    declared: Mapping[str, DeclaredColumn],
    inference: Inference,
    lines: np.ndarray | None,
) -> Target:
    """Return the Target in one column, or of the labels in several."""

    def told(column: str) -> dict[str, Any]:
        return {"inference": inference, "declared": declared.get(column), "lines": lines}

    if isinstance(target_column, str):
        how = told(target_column)
        return infer_target(seen[target_column], target_column, task=task, positive_class=positive_class, **how)

    def classes_of(seen: Seen, column: str) -> Target:
        return infer_target(seen, column, task="classification", **told(column))

    return infer_labels(seen, target_column, classes_of, positive_class=positive_class, lines=lines)


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


def _task(
    where: str,
    facts: Facts,
    task: Task | UnsetType,
    declared: DeclaredColumn | None,
    inference: Inference,
) -> tuple[Task, str]:
    """Return the task and the rule that decided it."""
    if task is not UNSET:
        return task, TASK_IS_SET
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
        problems.append(f"{where}: expected numbers, got {wrong} ({places(bad, lines)})")
    elif seen.facts.distinct < 2:
        problems.append(f"{where}: expected different numbers, got always {seen.facts.traits.first[0]!r}")
    if positive_class is not None:
        problems.append("positive_class: expected only with classification, got a regression target")
    return problems


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


def examples(seen: Seen, at: np.ndarray) -> str:
    """Return the first different cells of these rows in words; numbers where no texts are kept."""
    if seen.coded is None:
        return _named([f"{number:.17g}" for number in dict.fromkeys(seen.numbers().read()[at].tolist())])
    return _named(list(dict.fromkeys(seen.cells().read()[at])))


def _named(found: Sequence[str]) -> str:
    return ", ".join(map(repr, found[:SHOWN])) + (" ..." if len(found) > SHOWN else "")


def places(rows: np.ndarray, lines: np.ndarray | None) -> str:
    """Return the first rows in words: lines of the file where known, else rows counted from 1."""
    unit, shown = ("row", rows + 1) if lines is None else ("line", lines[rows])
    more = f" and {len(shown) - SHOWN:,} more" if len(shown) > SHOWN else ""
    return f"{unit} {', '.join(map(str, shown[:SHOWN]))}{more}"
