"""The model card: exact text for a small model, honest limits, and no name can break its Markdown."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.analysis.card import limits, model_card, wilson_interval
from mmjax.analysis.report import Report, ReportInput, build_report
from mmjax.schema import Column, ImageSpec, Schema, Target

COLUMNS = (
    Column(name="sepal|width", kind="numeric", reason="all numbers"),
    Column(name="colour", kind="categorical", vocabulary=("blue", "red"), reason="2 texts"),
    Column(name="id", kind="identifier", reason="all distinct"),
)


def report_of(classes: tuple[str, ...], **changes) -> Report:
    k = len(classes)
    given = ReportInput(
        config_dict={"name": "iris", "seed": 0},
        schema=Schema(target=Target(column="species", task="classification", classes=classes), columns=COLUMNS),
        split_sizes={"train": 90, "test": 10 * k},
        class_counts={"train": dict.fromkeys(classes, 90 // max(k, 1)), "test": dict.fromkeys(classes, 10)},
        notes=("column id: left out",),
        decisions=({"key": "training.epochs", "value": 3, "why": "few rows"},),
        metrics={"train": {"accuracy": 1.0}, "test": {"accuracy": 0.9, "roc_auc": float("nan")}},
        per_class={"test": [{"class": c, "precision": 1.0, "recall": 0.9, "f1": 0.95, "support": 10} for c in classes]},
        confusion={"test": [[10.0 if i == j else 0.0 for j in range(k)] for i in range(k)]},
        history=[{"val_loss": 0.5}],
        best_epoch=1,
        seconds={"train": 12.3456},
        samples_per_second=98765.4,
        parameters=1234,
        versions={"mmjax": "0.1.0", "jax": "0.12.0"},
    )
    return build_report(given._replace(**changes))


CARD = """\
# iris

Predicts **species**, one of 2 classes (no, yes), from 2 columns: sepal\\|width, colour.

Network: unnamed, 1,234 parameters.

## Trained on

110 rows: 90 train, 20 test. Weights of epoch 1 of 1.

| column | kind | why |
| :-- | :-- | :-- |
| sepal\\|width | numeric | all numbers |
| colour | categorical | 2 texts |
| id | identifier | all distinct |

| rows of class | train | test |
| :-- | --: | --: |
| no | 45 | 10 |
| yes | 45 | 10 |

## How good it is

| metric | test |
| :-- | --: |
| accuracy | 0.9000 |
| roc_auc | - |

precision, recall, f1, roc_auc and pr_auc are about class yes.

## Classes

| class | precision | recall | f1 | support |
| :-- | --: | --: | --: | --: |
| no | 1.0000 | 0.9000 | 0.9500 | 10 |
| yes | 1.0000 | 0.9000 | 0.9500 | 10 |

## Confusion

Rows are true classes, columns predicted ones.

|  | no | yes |
| :-- | --: | --: |
| no | 10 | 0 |
| yes | 0 | 10 |

## What was done to the data

- column id: left out

## What was decided for you

| key | value | why |
| :-- | :-- | :-- |
| training.epochs | 3 | few rows |

## Limits

- The accuracy was measured on 20 rows: by chance alone it may lie anywhere between 0.699 and 0.972 \
(95 % Wilson interval).
- Undefined on the test rows, hence shown as `-`: roc_auc.
- Classes with fewer than 30 test rows, whose scores say little: no (10), yes (10).
- Always answering no would have an accuracy of 0.500 on the test rows.
- A category that was not in the training rows is treated like every other unknown one.
- Numbers and dates outside the range of the training rows get an answer too, with no warning unless the schema \
file gives their column a minimum or maximum.
- The splits are as good as the rows are independent: rows of one person, place or day in two splits make the numbers \
above too good.

## How to make it again

Save this as `config.yaml` (JSON is YAML) and run `python -m mmjax.train --config config.yaml`. The same data, \
versions, kind of processor and number of threads give the same weights, bit for bit.

```json
{
  "name": "iris",
  "seed": 0
}
```

## Versions

| package | version |
| :-- | :-- |
| jax | 0.12.0 |
| mmjax | 0.1.0 |
"""


def test_a_card_reads_so():
    assert model_card(report_of(("no", "yes"))) == CARD


def test_time_taken_changes_nothing():
    slow = report_of(("no", "yes"), seconds={"train": 999.0}, samples_per_second=1.0)
    assert model_card(slow) == CARD


def test_regression_of_images():
    schema = Schema(target=Target(column="age", task="regression"), image=ImageSpec(height_px=32, width_px=48))
    metrics = {"test": {"rmse": 3.5, "r2": 0.5}}
    report = report_of((), schema=schema, class_counts=None, per_class={}, confusion={}, metrics=metrics, notes=())
    card = model_card(report)
    assert "Predicts the number **age** from images of 32 x 48 pixels.\n" in card
    assert "| rmse | 3.5000 |\n" in card
    assert not re.search("## (Classes|Confusion|What was done)", card)
    assert any("Images unlike those" in line for line in limits(report))
    assert "mape: targets" not in card
    zeros = {"metrics": {"test": {"rmse": 3.5, "mape": 1.12e16}}, "zero_targets": {"test": 4, "train": 0}}
    changes = {"class_counts": None, "per_class": {}, "confusion": {}} | zeros
    card = model_card(report_of((), schema=schema, **changes))
    assert "| mape | - |\n" in card
    assert "\nmape: targets are 0 in rows (4 test), and no error is a share of 0.\n" in card


def test_copies_of_training_rows_in_the_test_split_are_told_first():
    leak = {"rows": 8, "of": 20, "metrics": {"accuracy": 0.75}}
    told = "8 of 20 test rows are copies of training rows: scores on them are too good."
    assert limits(report_of(("no", "yes"), leak=leak))[0] == f"{told} On the others accuracy is 0.7500, not 0.9000."
    assert limits(report_of(("no", "yes"), leak=leak | {"metrics": {}}))[0] == told


def test_probabilities_that_are_not_calibrated_are_told():
    given = {
        "config_dict": {"name": "iris", "training": {"calibration": "none"}},
        "metrics": {"test": {"accuracy": 0.9, "ece": 0.12}},
        "decisions": ({"key": "training.calibration", "value": "none", "why": "89 validation rows, 100 are needed"},),
    }
    told = (
        "Probabilities are not calibrated: ECE 0.12 on test; 89 validation rows, 100 are needed, or use `split.folds`."
    )
    assert told in limits(report_of(("no", "yes"), **given))
    asked = limits(report_of(("no", "yes"), **given | {"decisions": ()}))
    assert any(
        line.endswith("ECE 0.12 on test; `training.calibration: temperature` would calibrate them.") for line in asked
    )
    for change in (
        {"metrics": {"test": {"ece": 0.05}}},
        {"config_dict": {"name": "iris", "training": {"calibration": "temperature"}}},
    ):
        assert not any("calibrated" in line for line in limits(report_of(("no", "yes"), **given | change)))


def test_without_a_test_split_the_card_says_so():
    report = report_of(("no", "yes"), metrics={"validation": {"accuracy": 0.9}}, split_sizes={"validation": 10})
    assert limits(report)[0] == (
        "There was no test split: the numbers are from validation rows, which also shaped it; expect worse."
    )
    assert limits(report_of(("no", "yes"), metrics={}))[0] == "It was never evaluated."


def test_many_classes_are_summed_up():
    classes = tuple(f"c{i}" for i in range(30))
    matrix = [[10.0 if i == j else 0.0 for j in range(30)] for i in range(30)]
    matrix[4][5] = 3.0
    card = model_card(report_of(classes, confusion={"test": matrix}))
    assert "c19 and 10 more)" in card
    assert "| c4 | c5 | 3 | 23.1% |" in card
    assert "c9 (10) and 20 more." in card


@given(st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=5, unique=True))
@settings(max_examples=50, deadline=None)
def test_no_class_name_breaks_a_table(names: list[str]):
    card = model_card(report_of(tuple(names)))
    confusion = card.split("## Confusion\n")[1].split("\n## ")[0]
    rows = [line for line in confusion.splitlines() if line.startswith("|")]
    assert len(rows) == len(names) + 2
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows} == {len(names) + 2}
    assert "<" not in confusion


@pytest.mark.parametrize(
    ("share", "rows", "low", "high"),
    [(0.5, 10, 0.236593, 0.763407), (0.0, 10, 0.0, 0.277533), (1.0, 30, 0.886482, 1.0)],
)
def test_wilson_interval_equals_published_values(share: float, rows: int, low: float, high: float):
    assert wilson_interval(share, rows) == pytest.approx((low, high), abs=1e-5)
