"""report.json: everything there is to know about one training run, as plain JSON. Cards and tables are made from it."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from types import MappingProxyType
from typing import Any, NamedTuple

from mmjax.analysis.tables import Table, count, number
from mmjax.schema import Schema

REPORT_FORMAT = 1
OUT_OF_FOLD = "out_of_fold"
"""The training rows, each answered by the models of its fold, which have not seen it."""

HEADLINES = ("accuracy", "rmse", "subset_accuracy")
"""The metric that sums a model up, by task."""

Report = dict[str, Any]
"""JSON-able; no NaN or infinity: an undefined number is None."""

Metrics = Mapping[str, Mapping[str, float | None]]
"""split -> metric -> value; None or NaN where it is undefined."""


class ReportInput(NamedTuple):
    """What a report is made from."""

    config_dict: dict[str, Any]
    """The config as it was used, the recipe's decisions filled in, without what does nothing in it: it loads again."""
    schema: Schema
    split_sizes: dict[str, int]
    """Rows by split: `train`, `validation`, `test`."""
    class_counts: dict[str, dict[str, int]] | None
    """Rows by split and class, or that a label holds for; None for regression."""
    notes: tuple[str, ...]
    """Everything that was dropped, replaced or noticed in the data, a line each."""
    decisions: tuple[dict[str, Any], ...]
    """What the recipe decided: `{"key", "value", "why"}`."""
    metrics: dict[str, dict[str, float]]
    """Value by split and metric; NaN where undefined."""
    per_class: dict[str, list[dict[str, Any]]]
    """By split, in class order: `{"class", "precision", "recall", "f1", "support", ...}`; empty for regression. Of
    labels also `threshold`, `roc_auc`, `pr_auc` and `rows`."""
    confusion: dict[str, list[list[float]]]
    """By split: rows are true classes, columns predicted ones, in class order; empty for regression and labels."""
    history: list[dict[str, float]]
    """The metrics of each epoch, in order."""
    best_epoch: int
    """1-based: the epoch whose weights are kept; 0 without any."""
    seconds: dict[str, float]
    """Wall clock by stage."""
    samples_per_second: float
    parameters: int
    versions: dict[str, str]
    members: dict[str, Any] | None = None
    """What each member of an ensemble, of folds or of seeds is worth alone; None for one model."""
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] = MappingProxyType({})
    """95 % bootstrap interval by split and metric, of the split whose numbers count."""
    baselines: dict[str, Any] | None = None
    """A `mmjax.analysis.baselines.Judgement`; None where none was asked for."""
    answers: Mapping[str, Any] = MappingProxyType({})
    """`calibration`, `threshold`, `conformal`, `abstention`: what was fitted, and `splits` with figures by split."""
    leak: dict[str, Any] | None = None
    """`{"rows", "of", "metrics"}`: test rows that are copies of training rows, and the metrics on the others."""
    zero_targets: Mapping[str, int] = MappingProxyType({})
    """By split: rows whose target is exactly 0, of which mape makes nothing."""
    modalities: dict[str, Any] | None = None
    """A `mmjax.analysis.modalities.Modalities`; None where there are not images and columns."""


def build_report(given: ReportInput) -> Report:
    """Return the report: model, metrics, per-class scores, confusion, data, decisions, training, config, versions."""
    verdict = {"verdict": given.baselines["verdict"]} if given.baselines else {}  # the first line of the file
    return jsonable(
        {
            **verdict,
            "format": REPORT_FORMAT,
            "model": _model(given),
            "metrics": given.metrics,
            "intervals": {split: dict(found) for split, found in given.intervals.items()},
            "baselines": given.baselines,
            "leak": given.leak,
            "modalities": given.modalities,
            "per_class": given.per_class,
            "confusion": given.confusion,
            "answers": dict(given.answers),
            "data": _data(given),
            "decisions": list(given.decisions),
            "training": _training(given),
            "config": given.config_dict,
            "versions": given.versions,
            "members": given.members,
        }
    )


def write_report(path: Path, report: Report) -> None:
    """Write the report as indented JSON, whole or not at all."""
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    partial = path.with_name(path.name + ".partial")
    # A lone surrogate (an undecodable file name) becomes \udcXX, which JSON reads back as it was.
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(partial, path)


def jsonable(value: Any) -> Any:
    """Return `value` with tuples as lists, NumPy scalars as numbers, and None for NaN and infinity.

    >>> jsonable({"a": (1, float("nan"))})
    {'a': [1, None]}
    """
    match value:
        case dict():
            return {str(key): jsonable(item) for key, item in value.items()}
        case list() | tuple():
            return [jsonable(item) for item in value]
        case bool() | int() | str() | None:
            return value
        case float():
            return float(value) if math.isfinite(value) else None
        case _ if hasattr(value, "tolist"):
            return jsonable(value.tolist())
    raise TypeError(f"report: expected plain values, got {type(value).__name__}: {value!r}")


def evaluated_splits(report: Report) -> list[str]:
    """Return the splits that have metrics, the ones that count first: test, validation, train, then any other."""
    usual = ("test", "validation", OUT_OF_FOLD, "train")
    return [split for split in dict.fromkeys((*usual, *report["metrics"])) if report["metrics"].get(split)]


def beaten(report: Report) -> str | None:
    """Return the verdict where a baseline is ahead of the network, within noise or not; None otherwise."""
    baselines = report.get("baselines")
    return baselines["verdict"] if baselines and baselines["beaten"] else None


def metric_cell(report: Report, split: str, metric: str) -> str:
    """Return a metric as text; `-` where undefined, and for a mape of targets that are 0."""
    return number(meaningful(report["metrics"], report)[split].get(metric))


def meaningful(metrics: Metrics, report: Report) -> dict[str, dict[str, float | None]]:
    """Return the metrics, by split, with None for a mape of targets that are 0, which are counted in the report.

    >>> meaningful({"test": {"rmse": 2.0, "mape": 1e16}}, {"data": {"zero_targets": {"test": 3}}})
    {'test': {'rmse': 2.0, 'mape': None}}
    """
    return {
        split: {name: None if name == "mape" and zero_targets(report, split) else value for name, value in own.items()}
        for split, own in metrics.items()
    }


def zero_targets(report: Report, split: str) -> int:
    """Return how many targets of a split are 0, so that its mape means nothing."""
    return report.get("data", {}).get("zero_targets", {}).get(split, 0)


def zero_line(report: Report) -> str:
    """Return why mape is not shown; empty where it is."""
    found = {split: rows for split, rows in report["data"].get("zero_targets", {}).items() if rows}
    if not found:
        return ""
    told = ", ".join(f"{count(rows)} {split}" for split, rows in found.items())
    return f"mape: targets are 0 in rows ({told}), and no error is a share of 0"


def interval_cell(report: Report, split: str, metric: str) -> str:
    """Return the 95 % interval of a metric as text; `-` without one."""
    found = report.get("intervals", {}).get(split, {}).get(metric)
    return f"{number(found[0])} to {number(found[1])}" if found else "-"


def baseline_table(report: Report, *, seconds: bool) -> Table | None:
    """Return the network beside the baselines, a row each; None where there are none."""
    found = report.get("baselines")
    if not found:
        return None
    metrics = tuple(found["network"])
    rows = [("this network", "", found["network"], None)]
    rows += [(one["name"], one["chosen"], one["metrics"], one["seconds"]) for one in found["baselines"]]
    cells = tuple(
        (name, chosen, *(number(values[metric]) for metric in metrics), *([_seconds(spent)] if seconds else []))
        for name, chosen, values, spent in rows
    )
    header = ("model", "setting", *metrics, *(["seconds"] if seconds else []))
    note = "\n".join([found["verdict"], *found["notes"]])
    return Table(f"Baselines ({found['split']}, {count(found['rows'])} rows)", header, cells, note=note, text_columns=2)


def modality_table(report: Report) -> Table | None:
    """Return what the model is worth with both and with either hidden, a row each; None without images and columns."""
    found = report.get("modalities")
    if not found:
        return None
    metrics = tuple(found["each"][0]["metrics"])
    rows = [
        (seen["name"], *(number(seen["metrics"][metric]) for metric in metrics), _interval(seen["difference"]))
        for seen in found["each"]
    ]
    title = f"What images and columns add ({found['split']}, {count(found['rows'])} rows)"
    note = f"{found['verdict']}; the same model throughout, what it is not shown is missing"
    return Table(title, ("seen", *metrics, f"{found['metric']}, 95 % of the difference"), tuple(rows), note=note)


def _interval(found: Sequence[float] | None) -> str:
    return "" if not found else f"{number(found[0])} to {number(found[1])}"


def _seconds(spent: float | None) -> str:
    return "" if spent is None else f"{spent:.1f}"


def leak_line(report: Report) -> str:
    """Return the sentence about test rows that are copies of training rows; empty where there is none."""
    leak = report.get("leak")
    if not leak:
        return ""
    told = f"{count(leak['rows'])} of {count(leak['of'])} test rows are copies of training rows: scores on them are too"
    for name in HEADLINES:
        if leak["metrics"].get(name) is not None:
            here, all_rows = number(leak["metrics"][name]), number(report["metrics"]["test"][name])
            return f"{told} good. On the others {name} is {here}, not {all_rows}."
    return f"{told} good."


def headline_split(report: Report) -> str | None:
    """Return the split whose numbers count: `test` where it has metrics, else the next best; None without metrics."""
    return next(iter(evaluated_splits(report)), None)


class Spread(NamedTuple):
    """How one metric differs from member to member."""

    metric: str
    mean: float
    std: float
    """Of the members as a sample: divided by E - 1."""
    lowest: float
    highest: float


def member_spreads(report: Report, names: Sequence[str]) -> tuple[str, list[Spread]]:
    """Return the split and how the metrics `names` of each member alone spread on it; none for one model."""
    each = (report.get("members") or {}).get("each", ())
    split = "test" if any(member["test"] for member in each) else "validation"
    found = []
    for name in names:
        if name == "mape" and zero_line(report):
            continue
        values = [member[split].get(name) for member in each]
        if len(values) > 1 and all(isinstance(value, int | float) for value in values):
            found.append(Spread(name, mean(values), stdev(values), min(values), max(values)))
    return split, found


def kept_epoch(report: Report) -> str:
    """Return which epoch's weights the model has, in words; empty where that is not known."""
    best, epochs = report["training"]["best_epoch"], report["training"]["epochs"]
    if report.get("members") and report["members"]["kind"] != "seeds":
        own = [member["best_epoch"] for member in _answering(report)]
        return "the best epoch of each member" + (f" ({min(own)} to {max(own)} of {epochs})" if own else "")
    return f"epoch {best} of {epochs}" if best else ""


def together(report: Report) -> str:
    """Return how many models answer together, to go after a number of parameters; empty for one."""
    several = len(_answering(report))
    return f", of {several} models that answer together" if several else ""


def _answering(report: Report) -> list[dict[str, Any]]:
    """Return the members that answer together; none for one model, also for the first of several seeds."""
    members = report.get("members")
    return [] if not members or members["kind"] == "seeds" else members["each"]


def members_title(report: Report) -> str:
    """Return what the members of a report are, in words."""
    members = report["members"]
    several = len(members["each"])
    match members["kind"]:
        case "seeds":
            return f"Seeds {', '.join(str(member['number']) for member in members['each'])}; the first is kept"
        case "folds":
            return f"{several} models of {members['folds']} folds, each alone"
    return f"{several} members, each alone"


def members_note(report: Report) -> str:
    """Return what the answers of single members have from the model, in words; empty where nothing is known of it."""
    shared = [kind for kind in ("calibration", "threshold") if report.get("answers", {}).get(kind, {}).get("splits")]
    shared = [kind for kind in shared if kind == "threshold" or "temperature" in report["answers"][kind]]
    if not report["members"].get("as_decided") or not shared:
        return ""
    seeds = report["members"]["kind"] == "seeds"  # to each of which all is fitted that is not given
    own = [kind for kind in shared if seeds and (kind == "calibration" or "metric" in report["answers"][kind])]
    others = [kind for kind in shared if kind not in own]
    told = [f"its own {' and '.join(own)}"] if own else []
    told += [f"the {' and the '.join(others)} of the model"] if others else []
    return f"each with {' and '.join(told)}"


def class_columns(report: Report) -> tuple[str, str, tuple[str, ...]]:
    """Return (title, what a row is, scores) of the table of classes or of labels."""
    if report["model"]["task"] == "multilabel":
        return "Labels", "label", ("threshold", "precision", "recall", "f1", "roc_auc", "pr_auc")
    return "Classes", "class", ("precision", "recall", "f1")


class ConfusedPair(NamedTuple):
    """Rows of one class that were taken for another."""

    truth: str
    predicted: str
    rows: float
    share: float
    """Of the rows of class `truth`."""


def confused_pairs(matrix: list[list[float]], classes: list[str], limit: int) -> list[ConfusedPair]:
    """Return the most frequent confusions, at most `limit`, the most frequent first, ties in class order."""
    pairs = [
        ConfusedPair(classes[i], classes[j], rows, rows / sum(matrix[i]))
        for i in range(len(classes))
        for j, rows in enumerate(matrix[i])
        if i != j and rows > 0
    ]
    return sorted(pairs, key=lambda pair: -pair.rows)[:limit]


def _model(given: ReportInput) -> dict[str, Any]:
    target, model = given.schema.target, given.config_dict.get("model", {})
    labels = [{"name": label.column, "no": label.negative, "yes": label.positive} for label in target.labels]
    binary = target.task == "classification" and len(target.classes) == 2
    return {
        "name": given.config_dict["name"],
        "task": target.task,
        "target": target.column,
        "target_reason": target.reason,
        "classes": target.classes,
        "positive_class": target.classes[given.schema.positive_index] if binary else None,
        **({"labels": labels} if labels else {}),
        "type": model.get("type"),
        "network": model.get("name"),
        "architecture": model.get("architecture", {}),
        "parameters": given.parameters,
    }


def _data(given: ReportInput) -> dict[str, Any]:
    schema = given.schema
    used = dict.fromkeys(schema.image.columns if schema.image is not None else (), "image")
    used |= dict.fromkeys(schema.target.columns, "target")
    columns = [
        {"name": c.name, "kind": used.get(c.name, c.kind), "reason": c.reason}
        | ({"categories": len(c.vocabulary)} if c.kind in ("categorical", "boolean") else {})
        for c in schema.columns
    ]
    image = schema.image
    return {
        "rows": sum(given.split_sizes.values()),
        "split_sizes": given.split_sizes,
        "class_counts": given.class_counts,
        "columns": columns,
        "image_size_px": [image.height_px, image.width_px] if image is not None else None,
        "notes": given.notes,
        **({"zero_targets": dict(given.zero_targets)} if any(given.zero_targets.values()) else {}),
    }


def _training(given: ReportInput) -> dict[str, Any]:
    history, best = given.history, given.best_epoch
    return {
        "epochs": len(history),
        "best_epoch": best,
        "first": history[0] if history else None,
        "best": history[best - 1] if 0 < best <= len(history) else None,
        "last": history[-1] if history else None,
        "seconds": given.seconds,
        "samples_per_second": given.samples_per_second,
    }
