"""What images and columns each add: one model's answers to the same rows, with the one or the other hidden from it.

The cheap ablation: nothing is trained anew. A model that learnt with modality dropout has met rows without either, so
what it loses without the images is about what they add; a model trained on the columns alone may do better than this
one does on them (`benchmarks/multimodal.py` trains all three).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mmjax.analysis.bootstrap import Interval, difference_intervals, larger_than_noise, metric_values, resample
from mmjax.analysis.tables import number
from mmjax.artifact.answers import Answers
from mmjax.schema import Batch

BOTH, COLUMNS, IMAGES = "images and columns", "columns alone", "images alone"


class Seen(NamedTuple):
    """What the model is worth where it sees only this."""

    name: str
    metrics: dict[str, float]
    difference: Interval | None
    """95 % interval of the headline metric here less that of both; None of both itself, and where undefined."""


class Modalities(NamedTuple):
    """What each modality adds on a split."""

    split: str
    rows: int
    metric: str
    """The one that is compared: `rmse` or `log_loss`."""
    each: tuple[Seen, ...]
    verdict: str
    """One sentence."""


def without_images(batch: Batch) -> Batch:
    """Return the encoded rows with every image missing."""
    present = batch["image_present"]
    return batch | {"image": np.zeros_like(batch["image"]), "image_present": np.zeros_like(present)}


def without_columns(batch: Batch) -> Batch:
    """Return the encoded rows with every cell missing."""
    hidden: dict[str, Any] = {}
    if "numeric" in batch:
        hidden["numeric"] = np.full_like(batch["numeric"], np.nan)
    if "category" in batch:
        hidden["category"] = np.zeros_like(batch["category"])
    return batch | hidden


HIDES: dict[str, Callable[[Batch], Batch]] = {COLUMNS: without_images, IMAGES: without_columns}


def judge_modalities(both: Answers, alone: dict[str, Answers], split: str, *, seed: int) -> Modalities:
    """Return the Modalities of a model's Answers to the same rows: to whole rows, and by what else it was shown."""
    metric = "rmse" if both.probabilities is None else "log_loss"
    whole, values = resample(both, seed=seed), metric_values(both)
    found = [Seen(BOTH, values, None)]
    for name, answers in alone.items():
        difference = difference_intervals(whole, resample(answers, seed=seed)).get(metric)
        found.append(Seen(name, metric_values(answers), difference))
    return Modalities(split, len(both.row), metric, tuple(found), _verdict(metric, found, split))


def _verdict(metric: str, found: list[Seen], split: str) -> str:
    """Return how much worse (the metric is one of errors) the model is without either, and whether that is noise."""
    ours, told = found[0].metrics[metric], []
    for seen in found[1:]:
        value = seen.metrics[metric]
        hidden = "images" if seen.name == COLUMNS else "columns"
        if seen.difference is None:
            worse = "not to be told from noise"
        elif not larger_than_noise(seen.difference):
            worse = "within noise"
        else:
            worse = "worse" if value > ours else "better, so they harm it"
        told.append(f"{number(value)} without the {hidden} ({worse})")
    return f"on {split} {metric} is {number(ours)} with both, {' and '.join(told)}"
