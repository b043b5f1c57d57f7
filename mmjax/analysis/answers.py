"""How far answers can be trusted, in words: lines for the terminal and for the card, and the reliability table."""

from typing import Any

from mmjax.analysis.report import Report, headline_split
from mmjax.analysis.tables import count, number, printable

MOST_LABELS = 10
"""Thresholds that are told one by one."""
MOST_SHARES = 5
"""Reweighted classes that are told one by one, the furthest from their share first."""
CALIBRATED = {"ece": "ECE", "brier": "Brier", "log_loss": "log loss"}


def answer_lines(report: Report) -> list[str]:
    """Return a line for each thing that was fitted or asked for beside the network, with what it does on test.

    Where there is no test split, on the split whose numbers count.
    """
    split, told = headline_split(report), {"calibration": _calibration, "threshold": _threshold}
    told |= {"conformal": _conformal, "abstention": _abstention}
    weighted = class_weighted(report)
    folds = report.get("config", {}).get("split", {}).get("folds")
    held = "out-of-fold" if folds else "validation"
    lines = []
    for kind, words in told.items():
        fact = report.get("answers", {}).get(kind, {})
        figures = fact.get("splits", {}).get(split)
        fact = {"held": held, "weighted": weighted} | fact
        if figures is not None and (line := words(fact, figures, f"on {split}")):
            lines.append(line)
    return [*lines, *filter(None, (sign_line(report), reweighted_line(report), focal_line(report)))]


def class_weighted(report: Report) -> bool:
    """Return whether training weighted the classes, so that probabilities are not shares of rows."""
    return report.get("config", {}).get("training", {}).get("class_weights", "none") != "none"


def reweighted_line(report: Report) -> str:
    """Return how far the mean probabilities of weighted classes are from their shares; empty without such weights.

    Weights shift the odds of classes, which no temperature can undo.
    """
    split, model = headline_split(report), report["model"]
    shares = report.get("answers", {}).get("calibration", {}).get("splits", {}).get(split, {}).get("shares")
    if not class_weighted(report) or shares is None:
        return ""
    found = dict(zip(model["classes"], zip(shares["predicted"], shares["observed"], strict=True), strict=True))
    if model.get("positive_class") in found:
        found = {model["positive_class"]: found[model["positive_class"]]}
    furthest = sorted(
        (name for name in found if None not in found[name]), key=lambda x: -abs(found[x][0] - found[x][1])
    )
    each = [f"{printable(name)} {number(found[name][0])} ({number(found[name][1])})" for name in furthest[:MOST_SHARES]]
    more = f" and {len(furthest) - MOST_SHARES} more" if len(furthest) > MOST_SHARES else ""
    return (
        f"probabilities: those of reweighted classes (training.class_weights); on {split} the mean of each, and its "
        f"share of the rows: {', '.join(each)}{more}; they rank rows and are for a threshold, but are no frequencies"
    )


def focal_line(report: Report) -> str:
    """Return that probabilities were learnt by focal loss and calibrated by nothing; empty where they were not."""
    loss = report.get("config", {}).get("training", {}).get("loss")
    if loss != "focal" or "calibration" in report.get("answers", {}):
        return ""
    return (
        "probabilities: learnt by focal loss, which makes them less sure than they should be, and not calibrated; give "
        "more validation rows, or set training.calibration: temperature"
    )


def reliability_rows(report: Report) -> list[tuple[str, str, str, str]]:
    """Return the reliability curve of the split that counts: bin of confidence, mean confidence, accuracy, rows."""
    splits = report.get("answers", {}).get("calibration", {}).get("splits", {})
    curve = splits.get(headline_split(report), {}).get("after", {}).get("curve", [])
    return [
        (f"{part['low']:.2f} to {part['high']:.2f}", number(part["confidence"]), number(part["accuracy"]), rows)
        for part, rows in ((part, count(part["rows"])) for part in curve)
    ]


def _calibration(fact: dict[str, Any], figures: dict[str, Any], where: str) -> str:
    if "temperature" not in fact:
        return ""
    before, after = figures.get("before", {}), figures["after"]
    moved = [f"{words} {_moved(before.get(name), after[name])}" for name, words in CALIBRATED.items()]
    if after.get("ece_by_chance") is not None:
        moved[0] += f" ({number(after['ece_by_chance'])} by chance were all exact)"
    kind = "calibration of reweighted classes" if fact.get("weighted") else "calibration"
    told = f"{kind}: temperature {fact['temperature']:.3g}{_matrix(fact)} fitted on {_rows(fact)}"
    if "mean_temperature" in fact:
        told += (
            f", each fold's model by itself, and {fact['mean_temperature']:.3g} of their mean (as sure as one of them)"
        )
    return f"{told}; {where} {', '.join(moved)}"


def _matrix(fact: dict[str, Any]) -> str:
    """Return what is told of a matrix that was asked for."""
    if "matrix" not in fact:
        return ""
    doubt = f", doubt {fact['doubt']:.2g}" if fact.get("doubt") else ""
    if (gain := fact["matrix"]) is None:
        return f"{doubt} (a matrix of the classes was no better)"
    held_out = _moved(gain["log_loss_before"], gain["log_loss_after"])
    return f"{doubt} and a matrix of the classes (log loss held out {held_out})"


def _threshold(fact: dict[str, Any], figures: dict[str, Any], where: str) -> str:
    metric = fact.get("metric")
    why = f"the best {metric} on {_rows(fact)}" if metric else "as given"
    names = dict.fromkeys([metric] if metric else ["accuracy", "f1"])
    moved = ", ".join(f"{name} {_moved(figures['before'][name], figures['after'][name])}" for name in names)
    if "labels" in fact:
        each = list(fact["labels"].items())
        listed = ", ".join(f"{printable(name)} {value:.3g}" for name, value in each[:MOST_LABELS])
        more = f" and {len(each) - MOST_LABELS} more" if len(each) > MOST_LABELS else ""
        return f"threshold of each label: {listed}{more}, {why}; {where} mean {moved} (from 0.5 to it)"
    positive = printable(fact.get("class", ""))
    return f"threshold: {positive} from probability {fact['value']:.3g} on, {why}; {where} {moved} (from 0.5 to it)"


def _conformal(fact: dict[str, Any], figures: dict[str, Any], where: str) -> str:
    if fact.get("labels"):
        return _label_sets(fact, figures, where)
    sized = "mean_size" in figures
    what, holds = ("sets", "the class") if sized else ("intervals", "the number")
    size = f"{figures['mean_size']:.2f} classes" if sized else f"a width of {number(figures['mean_width'])}"
    empty = figures.get("sizes", {}).get("0")
    none = f", {empty:.1%} of them empty (no class is as probable as true ones are)" if empty else ""
    if "quantiles" in fact:
        low, high = fact["quantiles"]
        asked = f"{high - low:.4g} of cases, were the quantiles {low:.4g} and {high:.4g} exact"
        held = f"{where} {_covered(figures, 'do')}, with {size} in the mean"
        return f"coverage: intervals that hold the number in {asked}; {held}; training.coverage makes it so"
    return (
        f"coverage: {what} to hold {holds} in {fact['coverage']:.4g} of cases, fitted on {_rows(fact)}; {where} "
        f"{_covered(figures, 'do')}, with {size} in the mean{none}"
    )


def _covered(figures: dict[str, Any], verb: str = "") -> str:
    """Return the coverage, the range that chance leaves it in with so few rows, and whether it is outside."""
    told = f"{number(figures['coverage'])} {verb}".rstrip()
    if "expected" not in figures or figures["coverage"] is None:
        return told
    low, high = figures["expected"]
    outside = ""
    if figures["coverage"] < low:
        outside = ": less than chance leaves, these rows may differ from those"
    elif figures["coverage"] > high:
        outside = "; ties, and the mean over models of folds, cover more"
    return f"{told} ({low:.3g} to {high:.3g} is expected of so many rows in 95 % of cases{outside})"


def sign_line(report: Report) -> str:
    """Return how many intervals reach beyond 0, where no target of the training rows does, and what to try."""
    split, fact = headline_split(report), report.get("answers", {}).get("conformal", {})
    figures, never = fact.get("splits", {}).get(split, {}), fact.get("never")
    share = figures.get({"negative": "below_zero", "positive": "above_zero"}.get(never, ""))
    if not share:
        return ""
    beyond = "below" if never == "negative" else "above"
    some = "less than 0.1%" if share < 0.001 else f"{share:.1%}"
    return (
        f"intervals: on {split} {some} reach {beyond} 0, where no training target is; nothing was cut: {fact['advice']}"
    )


def _label_sets(fact: dict[str, Any], figures: dict[str, Any], where: str) -> str:
    empty = figures["sizes"].get("0")
    none = f", {empty:.1%} of them empty" if empty else ""
    return (
        f"coverage: sets to hold {fact['coverage']:.4g} of a row's true labels in the mean, fitted on {_rows(fact)} "
        f"with any; {where} {_covered(figures)}, with {figures['mean_size']:.2f} labels in a set in the mean "
        f"({figures['mean_labels']:.2f} are true){none}"
    )


def _abstention(fact: dict[str, Any], figures: dict[str, Any], where: str) -> str:
    unit = "subset accuracy" if fact.get("labels") else "accuracy"
    return (
        f"abstained: below a probability of {fact['below']:.4g}; {where} {figures['share']:.1%} of the rows, {unit} "
        f"{number(figures['accuracy_of_answered'])} on the others, {number(figures['accuracy'])} on all"
    )


def _rows(fact: dict[str, Any]) -> str:
    return f"{fact.get('rows', 0):,} {fact['held']} rows"


def _moved(before: float | None, after: float | None) -> str:
    return number(after) if before is None else f"{number(before)} -> {number(after)}"
