"""Label columns are understood strictly, dealt alike, looked at one by one, and refused with their places."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.config import MULTILABEL_METRICS, Audit
from mmjax.config_load import config_from_dict, load_config
from mmjax.data.audit import audit
from mmjax.data.encode import encode, encode_label
from mmjax.data.infer import infer_schema
from mmjax.data.labels import FEWEST_ROWS, strata
from mmjax.data.prepare import prepare
from mmjax.data.prepared import class_counts
from mmjax.data.schema_file import schema_file_text
from mmjax.data.split import deal_folds, split_rows
from mmjax.errors import ConfigError, DataError
from mmjax.schema import Label, schema_from_json, schema_to_json
from tests.auditing import table_rows, text_columns
from tests.doors import tiny, write_csv

COLUMNS = text_columns(
    {
        "x": np.arange(8) * 1.5,
        "urgent": ["yes", "no", "no", "yes", "no", "no", "yes", "no"],
        "bill": [1, 0, 1, 0, 1, 0, 1, 0],
        "spam": ["False", "False", "True", "False", "True", "False", "False", "False"],
    }
)
LABELS = ("urgent", "bill", "spam")


def test_each_column_has_the_positive_value_that_a_binary_target_would_have():
    schema = infer_schema(COLUMNS, target_column=LABELS)
    target = schema.target
    assert target.labels == tuple(
        Label(column=c, negative=n, positive=p)
        for c, n, p in (("urgent", "no", "yes"), ("bill", "0", "1"), ("spam", "False", "True"))
    )
    assert (target.task, target.classes, target.columns) == ("multilabel", LABELS, LABELS)
    for label in target.labels:
        alone = infer_schema(COLUMNS, target_column=label.column, task="classification")
        assert alone.target.classes == (label.negative, label.positive)
    assert [c.kind for c in schema.columns] == ["numeric", "ignored", "ignored", "ignored"]
    assert schema_from_json(schema_to_json(schema), "test") == schema
    batch = encode(schema, COLUMNS, label=True)
    np.testing.assert_array_equal(batch["label"][:3], [[1, 1, 0], [0, 0, 0], [0, 1, 1]])
    assert batch["label"].dtype == np.int32
    typed = {"urgent": [True, False], "bill": [1, 0.0], "spam": [False, True]}  # as JSON has them
    cells = {name: np.array(values, dtype=object) for name, values in typed.items()}
    np.testing.assert_array_equal(encode_label(schema, cells), [[1, 1, 0], [0, 0, 1]])


def test_a_positive_class_means_yes_in_every_label():
    both = dict.fromkeys(("a", "b"), COLUMNS["urgent"]) | {"x": COLUMNS["x"]}
    target = infer_schema(both, target_column=("a", "b"), positive_class="no").target
    assert [(label.negative, label.positive) for label in target.labels] == [("yes", "no")] * 2
    with pytest.raises(DataError) as caught:
        infer_schema(COLUMNS, target_column=LABELS, positive_class="yes")
    told = "positive_class: expected one of the values of every label, got 'yes'; "
    assert caught.value.problems == (told + "'bill' holds '0' and '1'", told + "'spam' holds 'False' and 'True'")


def test_everything_wrong_with_the_labels_is_told_at_once_with_its_place():
    columns = COLUMNS | text_columns(
        {
            "urgent": ["yes", "no", "no", "Yes", "no", "maybe", "yes", "no"],
            "bill": [0] * 8,
            "spam": ["True", "", *"0101", "True", "True"],
        }
    )
    with pytest.raises(DataError) as caught:
        infer_schema(columns, target_column=LABELS, lines=np.arange(2, 10))
    assert caught.value.problems == (
        "label column 'urgent': expected two values, as 0 and 1 or no and yes, got 4: besides 'no' and 'yes' also "
        "'Yes' (line 5), 'maybe' (line 7); mend these cells, or leave the column out of target_column",
        "target column 'bill': expected at least two classes, got '0'",
        "target column 'spam': expected a value in every row, got 1 missing (line 3); remove these rows, or set "
        "on_invalid to drop",
    )
    schema = infer_schema(COLUMNS, target_column=LABELS)
    with pytest.raises(DataError, match=r"column 'urgent', row 4: expected one of the classes no, yes, got 'Yes'"):
        encode_label(schema, columns)
    with pytest.raises(DataError, match=r"target_column: no column 'bil'; .* did you mean 'bill'"):
        infer_schema(COLUMNS, target_column=("urgent", "bil"))


labelled = st.integers(0, 10_000).map(
    lambda seed: (
        lambda rng: (rng.random((rng.integers(20, 400), k := rng.integers(2, 7))) < rng.uniform(0.02, 0.6, k)).astype(
            int
        )
    )(np.random.default_rng(seed))
)


@settings(deadline=None, max_examples=60)
@given(labelled)
def test_strata_hold_rows_with_the_same_labels_or_the_same_rarest_one(labels: np.ndarray):
    found = strata(labels)
    assert found.dtype == np.int32
    _, combination, counts = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
    combination = combination.reshape(-1)
    for i in np.flatnonzero(counts >= FEWEST_ROWS):
        assert len(np.unique(found[combination == i])) == 1
    assert np.bincount(found).max() >= 1
    assert not (np.bincount(found) == 1).any()
    order = np.random.default_rng(0).permutation(len(labels))
    again = strata(labels[order])
    pairs = {(a, b) for a, b in zip(found[order].tolist(), again.tolist(), strict=True)}
    alone = np.bincount(found).argmax()  # single rows join the largest stratum, whichever of several it is
    assert len({p for p in pairs if p[0] != alone}) <= len(np.unique(found)) + 1


@settings(deadline=None, max_examples=40)
@given(labelled, st.integers(0, 100))
def test_every_part_and_every_fold_keeps_the_share_of_each_label(labels: np.ndarray, seed: int):
    found, shares = strata(labels), (0.6, 0.2, 0.2)
    split = split_rows(len(labels), strategy="stratified", fractions=shares, seed=seed, labels=found)
    within = len(np.unique(found[labels.any(axis=1)])) + 1  # each stratum is dealt to within a row or so
    for part, share in zip(split[:3], shares, strict=True):
        assert (np.abs(labels[part].sum(axis=0) - share * labels.sum(axis=0)) <= within * 1.5 + FEWEST_ROWS).all()
    folded = deal_folds(split, 4, seed=seed, labels=found)
    assert folded.folds is not None
    held = np.stack([labels[split.train][folded.folds == i].sum(axis=0) for i in range(4)])
    assert (np.ptp(held, axis=0) <= within * 1.5 + FEWEST_ROWS).all()


def test_strata_are_dealt_better_than_by_chance():
    rng, apart = np.random.default_rng(0), {"stratified": 0.0, "random": 0.0}
    labels = (rng.random((300, 5)) < [0.5, 0.3, 0.2, 0.1, 0.05]).astype(int)
    for strategy in apart:
        for seed in range(20):
            split = split_rows(300, strategy=strategy, fractions=(0.7, 0.1, 0.2), seed=seed, labels=strata(labels))  # pyright: ignore[reportArgumentType]
            apart[strategy] += np.abs(labels[split.test].mean(axis=0) - labels.mean(axis=0)).sum()
    assert apart["stratified"] < 0.4 * apart["random"]


def hard(n: int = 400) -> dict[str, np.ndarray]:
    """Columns of two labels: `tell` gives `a` away, `b` is rare."""
    rng = np.random.default_rng(0)
    a, b = rng.random(n) < 0.5, np.arange(n) < 12
    numbers = {name: rng.normal(size=n) for name in ("x", "z")}
    return numbers | {"tell": np.where(a, "m", "w"), "a": a.astype(int), "b": b.astype(int)}


def test_the_audit_looks_at_each_label():
    found = {finding.what.partition(":")[0]: finding for finding in audit(table_rows(hard(), ("a", "b")), Audit())}
    assert found["give the target away"].examples == ("'tell': each of its 2 values has one answer (label 'a')",)
    assert found["hold, or do not, for fewer than 10 train rows"].examples == ("b: holds for 8 of 280",)
    assert found["labels are imbalanced up to 34 to 1"].found == 1


def test_copies_with_other_labels_are_told_with_their_labels():
    columns = {name: np.concatenate([cells, cells[:3]]) for name, cells in hard().items()}
    columns["a"][-3:] = 1 - columns["a"][-3:]
    (conflict,) = (f for f in audit(table_rows(columns, ("a", "b")), Audit()) if f.check == "conflicts")
    assert conflict.what.startswith("equal in all features but with different labels: 6 rows in 3 groups")
    assert {example.split(": ")[1].split(" vs ")[0] for example in conflict.examples} <= {"b", "a, b"}


def config_of(path: Path, **data: object):
    tabular = {"path": str(path), "target_column": list(LABELS)} | data
    return config_from_dict({"name": "tiny", "data": {"tabular": tabular, "loading": "resident"}, **tiny()}, "test")


def write(path: Path, rows: int = 60) -> Path:
    rng = np.random.default_rng(0)
    made = [(f"{rng.normal():.3f}", *("01"[int(rng.random() < p)] for p in (0.5, 0.4, 0.2))) for _ in range(rows)]
    return write_csv(path, ("x", *LABELS), made)


def test_rows_without_a_label_are_refused_or_set_aside(tmp_path: Path):
    path = write(tmp_path / "t.csv")
    lines = path.read_text().splitlines()
    lines[3], lines[5] = "0.1,1,,0", "0.2,1,0,?"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError) as caught:
        prepare(config_of(path))
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "target column 'bill'", "target column 'spam'"]  # fmt: skip
    prepared = prepare(config_of(path, on_invalid="drop"))
    assert len(prepared.names) == 58
    assert [(one.name, one.column, one.kept) for one in prepared.quarantined] == [
        ("4", "bill", False),
        ("6", "spam", False),
    ]
    counts = class_counts(prepared)
    assert {part: sum(found.values()) for part, found in counts.items()} == {
        part: int(prepared.batch["label"][getattr(prepared.split, part)].sum()) for part in counts
    }
    assert prepared.notes[2].startswith("split: stratified, as the target is of labels")


def test_streamed_rows_are_the_same(tmp_path: Path):
    path = write(tmp_path / "t.csv")
    resident = prepare(config_of(path))
    streamed = config_from_dict(
        {"name": "tiny", "data": {"tabular": {"path": str(path), "target_column": list(LABELS)}, "loading": "streamed",
         "cache": {"path": str(tmp_path / "cache")}}, **tiny()}, "test")  # fmt: skip
    assert prepare(streamed).fingerprint == resident.fingerprint
    assert prepare(streamed).fingerprint == resident.fingerprint  # restored


def test_a_schema_file_declares_each_label(tmp_path: Path):
    path = write(tmp_path / "t.csv")
    schema = prepare(config_of(path)).schema
    (tmp_path / "s.json").write_text(schema_file_text(schema))
    declared = json.loads(schema_file_text(schema))
    assert declared["properties"]["bill"]["enum"] == ["0", "1"]
    assert set(LABELS) <= set(declared["required"])
    again = prepare(config_of(path, schema=str(tmp_path / "s.json")))
    assert again.schema.target == schema.target
    path.write_text(path.read_text() + "0.5,1,2,0\n")
    with pytest.raises(DataError, match=r"t.csv:62: column 'bill': expected one of '0', '1', got '2'"):
        prepare(config_of(path, schema=str(tmp_path / "s.json")))
    kept = prepare(config_of(path, schema=str(tmp_path / "s.json"), on_invalid="report"))
    assert len(kept.names) == 60  # an answer that is none cannot be kept


LIST = "`data.tabular.target_column`"
REFUSED = {
    "one column": (
        {"target_column": "y", "task": "multilabel"},
        {},
        "data.tabular.task: multilabel expected a list of columns in `target_column`, one for each label, got one "
        "column; list them, or set task: classification",
    ),
    "another task": (
        {"task": "classification"},
        {},
        "data.tabular.task: expected multilabel with a list of columns, got classification; remove it",
    ),
    "twice": (
        {"target_column": ["a", "a"]},
        {},
        "data.tabular.target_column: expected another column than data.tabular.target_column, got 'a' for both",
    ),
    "a single one": (
        {"target_column": ["a"]},
        {},
        "data.tabular.target_column: expected a list of 2 or more, each text that is not empty, got a list of 1",
    ),
    "loss": (
        {},
        {"loss": "cross_entropy"},
        f"training.loss: expected one of bce, focal for multilabel ({LIST}), got cross_entropy",
    ),
    "abstain": (
        {},
        {"abstain_below": 0.4},
        "training.abstain_below: expected a number above 0.5, as yes or no of a label is at least that probable, got "
        "0.4",
    ),
    "metric": (
        {},
        {"early_stopping": {"monitor": "val_accuracy"}},
        f"training.early_stopping.monitor: expected a metric of multilabel ({LIST}): "
        f"{', '.join(MULTILABEL_METRICS)}; got accuracy",
    ),
}


@pytest.mark.parametrize(("data", "training", "told"), REFUSED.values(), ids=REFUSED.keys())
def test_what_labels_cannot_be_is_refused_with_what_to_do(data: dict, training: dict, told: str):
    tabular = {"path": "a.csv", "target_column": ["a", "b"]} | data
    with pytest.raises(ConfigError) as caught:
        config_from_dict({"name": "x", "data": {"tabular": tabular}, "training": training}, "c")
    assert [problem.removeprefix("c: ") for problem in caught.value.problems] == [told]


def test_images_have_labels_in_a_csv_only():
    with pytest.raises(
        ConfigError, match=r"expected a .csv file as `data.image.path` with a list of columns, got photos"
    ):
        config_from_dict({"name": "x", "data": {"image": {"path": "photos", "target_column": ["a", "b"]}}}, "c")


def test_smoothing_is_of_one_class_a_row(tmp_path: Path):
    config = tmp_path / "c.yaml"
    config.write_text(
        "data: {tabular: {path: a.csv, target_column: [a, b]}}\ntraining: {label_smoothing: 0.1}\n", encoding="utf-8"
    )
    with pytest.raises(
        ConfigError, match=r"c.yaml:2: training.label_smoothing: has no effect: expected `training.loss"
    ):
        load_config(str(config))
