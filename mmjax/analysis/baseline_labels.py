"""Baselines of several labels: one of two classes for each label, by itself."""

from collections.abc import Callable, Sequence

import numpy as np

from mmjax.analysis.baseline_models import Fitted, Rows

Model = Callable[[Rows, Rows, np.ndarray], Fitted]
"""`model(rows to fit on, rows to choose by, x) -> Fitted`."""


def of_each_label(model: Model) -> Model:
    """Return the model that answers f64[N, L], the probability that each label holds, for `y f32[N, L]` of 0 and 1.

    `model` is one of classes, with one-hot `y`. A label that all rows to fit on hold, or none, keeps its share.
    """

    def each(train: Rows, choose: Rows, x: np.ndarray) -> Fitted:
        parts = []
        for i in range(train.y.shape[1]):
            held = train.y[:, i]
            if held.min() == held.max():
                parts.append(Fitted(np.full((len(x), 2), [1.0 - held[0], held[0]]), ""))
            else:
                parts.append(model(_two_classes(train, i), _two_classes(choose, i), x))
        return joined_labels(parts)

    return each


def joined_labels(parts: Sequence[Fitted]) -> Fitted:
    """Return what models of two classes say, f64[N, 2] for each label, as f64[N, L]; their setting where it is one."""
    settings = {part.chosen for part in parts}
    chosen = settings.pop() if len(settings) == 1 else "each label its own"
    return Fitted(np.stack([part.answers[:, 1] for part in parts], axis=1), chosen)


def _two_classes(rows: Rows, label: int) -> Rows:
    held = rows.y[:, label]
    return rows._replace(y=np.stack([1.0 - held, held], axis=1))
