"""Labels that are hard to learn: that few training rows have, or no row of a split, or far fewer than have them not."""

import numpy as np

from mmjax.data.audit_rows import SHOWN, Rows, counted, finding, noun
from mmjax.data.prepared import Finding
from mmjax.data.split import PARTS

IMBALANCE = 10.0
"""Times that one value of a label is more frequent than the other."""
FEW_ROWS = 10
"""A value of a label with fewer training rows is hard to learn."""


def label_findings(rows: Rows) -> list[Finding]:
    """Return labels with few training rows of a value, labels of which a split tells nothing, and imbalance."""
    names, label = rows.schema.target.classes, rows.batch["label"]
    sizes = np.array([len(part) for part in rows.split[:3]])
    held = np.stack([np.asarray(label[part]).sum(axis=0) for part in rows.split[:3]])
    rarer, found = np.minimum(held, sizes[:, None] - held), []
    train, many = rarer[0], f"of {counted(len(names), 'label')}"

    def examples(chosen: np.ndarray) -> list[str]:
        ordered = chosen[np.argsort(train[chosen], kind="stable")]
        return [f"{names[i]}: holds for {held[0, i]:,} of {sizes[0]:,}" for i in ordered]

    few = np.flatnonzero(train < FEW_ROWS)
    if len(few):
        what = f"hold, or do not, for fewer than {FEW_ROWS} train {noun(rows)}s: {len(few)} {many}"
        found.append(
            finding("classes", what, len(few), examples(few), "gather more of them, or leave these labels out")
        )
    for i, part in enumerate(PARTS[1:], 1):
        absent = np.flatnonzero((rarer[i] == 0) & (rarer.sum(axis=0) > 0))
        if sizes[i] and len(absent):
            what = f"hold for no {part} {noun(rows)}, or for all: {len(absent)} {many}, of which {part} tells nothing"
            told = (names[j] for j in absent[:SHOWN])
            found.append(finding("classes", what, len(absent), told, f"gather more of them, or enlarge {part}"))
    uneven = np.flatnonzero((train > 0) & (sizes[0] - train >= IMBALANCE * train))
    if len(uneven):
        ratio = (sizes[0] - train[uneven].min()) / train[uneven].min()
        what = f"labels are imbalanced up to {ratio:,.0f} to 1: {len(uneven)} {many}"
        advice = "judge by f1_macro or pr_auc, try training.class_weights: balanced or training.threshold: f1"
        found.append(finding("classes", what, len(uneven), examples(uneven), advice))
    return found
