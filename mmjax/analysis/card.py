"""card.md: what a model is, what it was made from, how good it is, and what not to expect of it.

Made from the report alone and free of dates, durations and host names, so that the same model has the same card.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from mmjax.analysis.answers import answer_lines, reliability_rows, reweighted_line
from mmjax.analysis.report import (
    Report,
    baseline_table,
    beaten,
    class_columns,
    confused_pairs,
    evaluated_splits,
    headline_split,
    interval_cell,
    kept_epoch,
    leak_line,
    member_spreads,
    members_note,
    members_title,
    metric_cell,
    modality_table,
    together,
    weight_column,
    zero_line,
)
from mmjax.analysis.tables import count, number, printable

MOST_CLASSES = 20
FEW_ROWS = 30
"""A class with fewer rows than this in the test split has scores that say little."""
UNCALIBRATED = 0.05
"""Probabilities without calibration whose expected calibration error is above this are warned of."""
NO_CELLS = ("identifier", "constant", "text", "ignored", "target", "image")
"""Kinds of columns whose cells the network does not see."""


def model_card(report: Report) -> str:
    """Return the card as Markdown; the same report gives the same text."""
    sections = (
        ("Trained on", _trained_on(report)),
        ("How good it is", _metrics(report)),
        ("Its members", _members(report)),
        ("Was the network worth it", _baselines(report)),
        ("What images and columns add", _modalities(report)),
        (class_columns(report)[0], _classes(report)),
        ("Confusion", _confusion(report)),
        ("How far to trust an answer", _trust(report)),
        ("What was done to the data", _bullets(escape(note) for note in report["data"]["notes"])),
        ("What was decided for you", _decisions(report)),
        ("Limits", _bullets(limits(report))),
        ("How to make it again", _reproduce(report)),
        ("Versions", _table(("package", "version"), sorted(report["versions"].items()), text_columns=2)),
    )
    verdict = beaten(report)
    first = f"> **{escape(verdict)}**\n\n" if verdict else ""
    head = f"{first}# {escape(report['model']['name'])}\n\n{_what(report)}\n"
    return head + "".join(f"\n## {title}\n\n{body}\n" for title, body in sections if body)


def limits(report: Report) -> list[str]:
    """Return what the numbers and the data do not show, in sentences derived from the report."""
    split, kinds = headline_split(report), {column["kind"] for column in report["data"]["columns"]}
    found = [*_limits_of_scores(report, split), *_limits_of_calibration(report, split)]
    found += _limits_of_classes(report, split)
    for decision in report["decisions"]:
        if decision["key"] == "training.epochs" and decision["why"].startswith("budget"):
            found.append(
                f"Its training was cut to {decision['value']} epochs ({decision['why']}): a longer one is better."
            )
    if "categorical" in kinds or "boolean" in kinds:
        found.append("A category that was not in the training rows is treated like every other unknown one.")
    if "numeric" in kinds or "datetime" in kinds:
        found.append(
            "Numbers and dates outside the range of the training rows get an answer too, with no warning unless the "
            "schema file gives their column a minimum or maximum."
        )
    if report["data"]["image_size_px"] is not None:
        found.append("Images unlike those it was trained on get an answer too, with no sign that they differ.")
    found.append(
        "The splits are as good as the rows are independent: rows of one person, place or day in two splits make the "
        "numbers above too good."
    )
    return found


def _limits_of_scores(report: Report, split: str | None) -> list[str]:
    if split is None:
        return ["It was never evaluated."]
    rows, metrics = report["data"]["split_sizes"].get(split, 0), report["metrics"][split]
    found = [line] if (line := leak_line(report)) else []
    if split != "test":
        found.append(f"There was no test split: the numbers are from {split} rows, which also shaped it; expect worse.")
    if rows and metrics.get("accuracy") is not None:
        low, high = wilson_interval(metrics["accuracy"], rows)
        found.append(
            f"The accuracy was measured on {count(rows)} rows: by chance alone it may lie anywhere between "
            f"{low:.3f} and {high:.3f} (95 % Wilson interval)."
        )
    undefined = [name for name, value in metrics.items() if value is None]
    if undefined:
        found.append(f"Undefined on the {split} rows, hence shown as `-`: {', '.join(undefined)}.")
    return found


def _limits_of_calibration(report: Report, split: str | None) -> list[str]:
    """Return that probabilities are off where they were not calibrated, and what would calibrate them."""
    error = report["metrics"].get(split, {}).get("ece")
    config = report["config"]
    if line := reweighted_line(report):
        return [f"{line[0].upper()}{escape(line[1:])}."]
    if config.get("training", {}).get("calibration") != "none" or error is None or error <= UNCALIBRATED:
        return []
    why = next((made["why"] for made in report["decisions"] if made["key"] == "training.calibration"), "")
    folds = "" if config.get("split", {}).get("folds") else ", or use `split.folds`"
    todo = f"{why}{folds}" if why else "`training.calibration: temperature` would calibrate them"
    return [f"Probabilities are not calibrated: ECE {error:.2f} on {split}; {todo}."]


def _limits_of_classes(report: Report, split: str | None) -> list[str]:
    counts = report["data"]["class_counts"]
    if not counts or split is None:
        return []
    classes = report["model"]["classes"]
    found = []
    few = [name for name in classes if counts.get(split, {}).get(name, 0) < FEW_ROWS]
    if few:
        names = ", ".join(f"{escape(name)} ({counts.get(split, {}).get(name, 0)})" for name in few[:10])
        more = f" and {len(few) - 10} more" if len(few) > 10 else ""
        what = class_columns(report)[0]
        found.append(f"{what} with fewer than {FEW_ROWS} {split} rows, whose scores say little: {names}{more}.")
    if report["model"]["task"] == "multilabel":
        return found
    tested = counts.get(split, {})
    if sum(tested.values()):
        largest = max(classes, key=lambda name: tested.get(name, 0))
        share = tested.get(largest, 0) / sum(tested.values())
        found.append(f"Always answering {escape(largest)} would have an accuracy of {share:.3f} on the {split} rows.")
    return found


def wilson_interval(share: float, rows: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share seen in `rows` trials (Wilson 1927).

    >>> low, high = wilson_interval(0.9, 100)
    >>> round(low, 4), round(high, 4)
    (0.8256, 0.9448)
    """
    z2 = 1.959964**2
    middle = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = math.sqrt(z2 * (share * (1 - share) / rows + z2 / (4 * rows * rows))) / (1 + z2 / rows)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def escape(text: str) -> str:
    r"""Return `text` so that Markdown, in tables too, shows it as it is.

    >>> escape("a_b|c *d* <e>")
    'a_b\\|c \\*d\\* &lt;e>'
    """
    return (
        re.sub(r"([\\`*\[\]|#~]|(?<!\w)_|_(?!\w))", r"\\\1", printable(text)).replace("&", "&amp;").replace("<", "&lt;")
    )


def _what(report: Report) -> str:
    model, data = report["model"], report["data"]
    target = escape(model["target"])
    used = [escape(column["name"]) for column in data["columns"] if column["kind"] not in NO_CELLS]
    named = [escape(column["name"]) for column in data["columns"] if column["kind"] == "image"]
    size = data["image_size_px"]
    which = f" ({', '.join(named)})" if named else ""
    inputs = [f"images of {size[0]} x {size[1]} pixels{which}"] if size is not None else []
    inputs += [f"{len(used)} column{'' if len(used) == 1 else 's'}: {', '.join(used)}"] if used else []
    if model["task"] == "regression":
        what = f"Predicts the number **{target}**"
    elif model["task"] == "multilabel":
        labels = [
            f"{escape(x['name'])} ({escape(x['yes'])} or {escape(x['no'])})" for x in model["labels"][:MOST_CLASSES]
        ]
        more = f" and {len(model['labels']) - MOST_CLASSES} more" if len(model["labels"]) > MOST_CLASSES else ""
        what = f"Predicts which of {len(model['labels'])} labels hold, any number of them: {', '.join(labels)}{more};"
    else:
        names = [escape(name) for name in model["classes"][:MOST_CLASSES]]
        more = f" and {len(model['classes']) - MOST_CLASSES} more" if len(model["classes"]) > MOST_CLASSES else ""
        what = f"Predicts **{target}**, one of {len(model['classes'])} classes ({', '.join(names)}{more}),"
    network = f"Network: {model['network'] or 'unnamed'}, {count(model['parameters'])} parameters{together(report)}."
    return f"{what} from {' and '.join(inputs) or 'nothing'}.\n\n{network}"


def _trained_on(report: Report) -> str:
    data = report["data"]
    sizes = ", ".join(f"{count(rows)} {split}" for split, rows in data["split_sizes"].items())
    kept = kept_epoch(report)
    epochs = f" Weights of {kept}." if kept else ""
    rows = [(c["name"], c["kind"], c["reason"]) for c in data["columns"]]
    table = _table(("column", "kind", "why"), rows, text_columns=3)
    return "\n\n".join([f"{count(data['rows'])} rows: {sizes}.{epochs}", *([table] if rows else []), *_counts(report)])


def _counts(report: Report) -> list[str]:
    counts, classes = report["data"]["class_counts"], report["model"]["classes"]
    if not counts or len(classes) > MOST_CLASSES:
        return []
    rows = [(name, *(count(by_class.get(name, 0)) for by_class in counts.values())) for name in classes]
    what = "rows with label" if report["model"]["task"] == "multilabel" else "rows of class"
    return [_table((what, *counts), rows)]


def _metrics(report: Report) -> str:
    splits = evaluated_splits(report)
    unseen = [split for split in splits if split != "train"]
    by_split = {split: report["metrics"][split] for split in unseen or splits}
    names = dict.fromkeys(name for metrics in by_split.values() for name in metrics)
    first, *others = by_split or [""]
    spread = [f"95 % of {first}"] if report.get("intervals", {}).get(first) else []
    rows = [
        (
            *(name, metric_cell(report, first, name), *(interval_cell(report, first, name) for _ in spread)),
            *(metric_cell(report, split, name) for split in others),
        )
        for name in names
    ]
    positive = report["model"]["positive_class"]
    about = f"\n\nprecision, recall, f1, roc_auc and pr_auc are about class {escape(positive)}." if positive else ""
    about += f"\n\n{told}." if (told := zero_line(report)) else ""
    if weights := weight_column(report):
        about += (
            f"\n\nRows count as the column {escape(weights)} weighs them: here, and in scores, supports and confusion."
        )
    about += "\n\nThe intervals are of 1,000 bootstrap resamples of the rows." if spread else ""
    return _table(("metric", first, *spread, *others), rows) + about if rows else ""


def _baselines(report: Report) -> str:
    table = baseline_table(report, seconds=False)  # the same model has the same card
    if table is None:
        return ""
    verdict, *notes = table.note.splitlines()
    about = f"{escape(verdict)}. All are measured on the same {report['baselines']['rows']:,} rows."
    body = _table(table.header, table.rows, text_columns=table.text_columns)
    return "\n\n".join([about, body, *([_bullets(map(escape, notes))] if notes else [])])


def _modalities(report: Report) -> str:
    table = modality_table(report)
    return "" if table is None else f"{escape(table.note)}.\n\n{_table(table.header, table.rows)}"


def _members(report: Report) -> str:
    split, spreads = member_spreads(report, [name for metrics in report["metrics"].values() for name in metrics])
    by_name = {one.metric: one for one in spreads}
    if not by_name:
        return ""
    rows = [(one.metric, *map(number, one[1:])) for one in by_name.values()]
    table = _table(("metric", "mean", "std", "lowest", "highest"), rows)
    note = f", {told}" if (told := members_note(report)) else ""
    return f"{members_title(report)}{note}, on {split} rows.\n\n{table}"


def _classes(report: Report) -> str:
    scores = report["per_class"].get(headline_split(report) or "", [])
    _, first, columns = class_columns(report)
    rows = [(str(row["class"]), *(number(row[c]) for c in columns), count(row["support"])) for row in scores]
    about = ""
    if rows and report["model"]["task"] == "multilabel":
        about = (
            "\n\nA label is said to hold where its probability reaches the threshold. support: rows that it holds for."
        )
    return _table((first, *columns, "support"), rows) + about if rows else ""


def _confusion(report: Report) -> str:
    matrix, classes = report["confusion"].get(headline_split(report) or "", []), report["model"]["classes"]
    if not matrix:
        return ""
    if len(classes) <= MOST_CLASSES:
        rows = [(classes[i], *map(count, row)) for i, row in enumerate(matrix)]
        return "Rows are true classes, columns predicted ones.\n\n" + _table(("", *classes), rows)
    pairs = confused_pairs(matrix, classes, MOST_CLASSES)
    rows = [(pair.truth, pair.predicted, count(pair.rows), f"{pair.share:.1%}") for pair in pairs]
    return "The most frequent mistakes.\n\n" + _table(("true", "predicted", "rows", "share"), rows, text_columns=2)


def _trust(report: Report) -> str:
    header = ("largest probability", "its mean", "accuracy", "rows")
    if report["model"]["task"] == "multilabel":
        header = ("probability of yes or no", "its mean", "accuracy", "labels of rows")
    rows = reliability_rows(report)
    table = f"How sure it is, and how often it is right ({headline_split(report)}).\n\n{_table(header, rows)}"
    lines = _bullets(map(escape, [*answer_lines(report), *_uncertainty(report)]))
    return "\n\n".join([*([lines] if lines else []), *([table] if rows else [])])


def _uncertainty(report: Report) -> list[str]:
    """Return what `uncertainty` of an answer is, of a model of several."""
    if not (together(report) or report["model"]["network"] == "tabm"):
        return []
    how = "0 (all alike) to 1" if report["model"]["classes"] else "the standard deviation of what they answer"
    return [f"uncertainty: each answer also says how far the networks in the model disagree: {how}"]


def _decisions(report: Report) -> str:
    rows = [(d["key"], json.dumps(d["value"], ensure_ascii=False), d["why"]) for d in report["decisions"]]
    return _table(("key", "value", "why"), rows, text_columns=3) if rows else ""


def _reproduce(report: Report) -> str:
    config = json.dumps(report["config"], indent=2, ensure_ascii=False)
    hurried = any(decision["key"] == "budget" for decision in report["decisions"])
    unless = ", unless the budget of time ends the training earlier or later" if hurried else ""
    return (
        "Save this as `config.yaml` (JSON is YAML) and run `python -m mmjax.train --config config.yaml`. The same "
        f"data, versions, kind of processor and number of threads give the same weights, bit for bit{unless}.\n\n"
        f"```json\n{config}\n```"
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, text_columns: int = 1) -> str:
    rule = [":--" if i < text_columns else "--:" for i in range(len(header))]
    lines = [[escape(str(cell)) for cell in header], rule, *([escape(str(cell)) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _bullets(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)
