"""What of a several-label model's answers a bootstrap draw needs, by row; and the metrics of draws from them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.analysis.bootstrap_ranking import Ranked, area, ranked_rows
from mmjax.artifact.answers import Answers
from mmjax.training.label_metrics import label_metrics

METRICS = ("subset_accuracy", "hamming_loss", "log_loss", "brier", "f1_micro", "f1_macro", "roc_auc")
"""The metrics that have intervals, the last of at most `MOST_RANKED` labels."""
MOST_RANKED = 20
_NONE = Ranked._make([np.zeros((0, 0))] * 4)


class LabelRows(NamedTuple):
    """Answers, by row."""

    parts: jax.Array | np.ndarray
    """f32[N, 4]: all labels right or not, and the means over labels of what is wrong, of log loss and Brier score."""
    hits: jax.Array | np.ndarray
    """f32[N, L]: the label holds and is said to;"""
    both: jax.Array | np.ndarray
    """f32[N, L]: one for holding, one for being said to."""
    ranked: Ranked
    """With a leading axis L, 0 of many labels."""


def label_values(answers: Answers) -> dict[str, float]:
    """Return the METRICS of Answers, as `label_metrics` computes them; NaN where undefined."""
    probabilities = np.asarray(answers.probabilities, np.float64)
    found = label_metrics(probabilities, answers.label, predictions=answers.prediction, weight=answers.weight)
    names = METRICS if answers.label.shape[1] <= MOST_RANKED else METRICS[:-1]
    return {name: found[name] for name in names}


def label_rows(answers: Answers, padded: int) -> LabelRows:
    """Return the LabelRows of Answers, padded with zeros."""
    truth, called = answers.label > 0, answers.prediction > 0
    yes, eps = np.asarray(answers.probabilities, np.float64), np.finfo(np.float64).eps
    log_loss = -np.log(np.clip(np.where(truth, yes, 1.0 - yes), eps, 1.0 - eps)).mean(axis=1)
    wrong = (truth != called).mean(axis=1)
    parts = np.stack([wrong == 0, wrong, log_loss, ((yes - truth) ** 2).mean(axis=1)], axis=1)
    few = truth.shape[1] if truth.shape[1] <= MOST_RANKED else 0
    each = [ranked_rows(np.asarray(answers.probabilities)[:, i], truth[:, i], padded) for i in range(few)]
    ranked = Ranked._make(np.stack(values) for values in zip(*each, strict=True)) if each else _NONE
    both = truth.astype(int) + called
    return LabelRows(_padded(parts, padded), _padded(truth & called, padded), _padded(both, padded), ranked)


def label_draw(rows: LabelRows, share: jax.Array) -> dict[str, jax.Array]:
    """Return the METRICS of a draw in which each row has this `share f32[N]`."""
    found = dict(zip(METRICS[:4], share @ rows.parts, strict=True))
    hits, both = share @ rows.hits, share @ rows.both
    f1 = jnp.where(both > 0, 2.0 * hits / jnp.where(both > 0, both, 1.0), 0.0)
    whole = both.sum()
    micro = jnp.where(whole > 0, 2.0 * hits.sum() / jnp.where(whole > 0, whole, 1.0), 0.0)
    found |= {"f1_micro": micro, "f1_macro": f1.mean()}
    if not len(rows.ranked.order):
        return found
    # One label after the other: all at once would hold L times the drawn rows.
    areas = jax.lax.map(lambda one: area(one, share), rows.ranked)
    return found | {"roc_auc": jnp.nanmean(areas)}


def _padded(values: np.ndarray, rows: int) -> np.ndarray:
    found = np.zeros((rows, values.shape[1]), np.float32)
    found[: len(values)] = values
    return found
