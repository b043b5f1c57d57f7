"""Several labels, as a user meets them: CSV -> train -> predict -> serve -> client, and one answer from every door."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

import mmjax
from mmjax.artifact.bundle import load_bundle
from mmjax.artifact.models import load_model
from mmjax.artifact.parity import answers_of, compare, compare_paths, label_tuples, read_predictions
from mmjax.artifact.predictor import Predictions, bundle_predictor, golden_problems
from mmjax.artifact.sample import read_sample, write_source
from mmjax.config_load import config_from_dict, load_config
from mmjax.data.decode import encode_png
from mmjax.data.prepare import prepare
from mmjax.errors import ConfigError
from mmjax.evaluate import evaluate_model
from mmjax.init import command as init
from mmjax.predict import predict_file
from mmjax.serving.limits import Limits
from mmjax.serving.parity import compare_live, compare_server
from mmjax.train import FitResult, fit
from tests.chromium import chromium
from tests.doors import door, write_csv
from tests.live import JSON, PNG, Client, thread
from tests.rough import roughly
from tests.untrained import TAGS, add_model

LABELS = ("urgent", "bill", "spam")
HEADER = ("x0", "x1", "kind", *LABELS)


def write(path: Path, rows: int = 240) -> Path:
    """A table whose labels follow from its columns, mostly, each written in other words."""
    rng = np.random.default_rng(0)
    x, kind = rng.normal(size=(rows, 2)), rng.integers(0, 3, rows)
    held = np.stack([x[:, 0] > 0.3, x[:, 1] + (kind == 0) > 0.5, (kind == 2) & (x[:, 0] < 0)], axis=1)
    held ^= rng.random(held.shape) < 0.05
    texts = (("no", "yes"), ("0", "1"), ("False", "True"))
    return write_csv(path, HEADER, [
        (f"{x[i, 0]:.3f}", f"{x[i, 1]:.3f}", "abc"[kind[i]], *(t[int(h)] for t, h in zip(texts, held[i], strict=True)))
        for i in range(rows)
    ])  # fmt: skip


def config_of(path: Path, name: str, model: dict[str, Any], training: dict[str, Any], **more: Any):
    data = {"tabular": {"path": str(path), "target_column": list(LABELS)}}
    chosen = {"epochs": 6, "batch_size": 32, "learning_rate": 0.02} | training
    return config_from_dict({"name": name, "data": data, "model": model, "training": chosen, **more}, "test")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("labels")
    write(home / "mail.csv")
    return home


@pytest.fixture(scope="module")
def made(home: Path) -> FitResult:
    """A model of two members, with all that labels can have."""
    training = {
        "members": 2,
        "class_weights": "balanced",
        "threshold": "f1",
        "calibration": "temperature",
        "coverage": 0.8,
        "abstain_below": 0.6,
        "early_stopping": {"monitor": "val_f1_macro"},
    }
    config = config_of(home / "mail.csv", "mail", {"name": "mlp", "architecture": {"hidden_layers": [16]}}, training)
    with roughly():
        return fit(config, runs_dir=home / "runs", registry=home / "registry")


@pytest.fixture(scope="module")
def server(home: Path, made: FitResult) -> Iterator[Client]:
    with thread(home / "registry", Limits(), models=("mail",)) as server:
        yield server.client


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_report_tells_of_each_label_and_the_card_of_all(made: FitResult, home: Path):
    report = json.loads((made.bundle / "report.json").read_text())
    assert made.metrics["test"]["f1_macro"] > 0.6
    assert [row["class"] for row in report["per_class"]["test"]] == list(LABELS)
    thresholds = report["answers"]["threshold"]["labels"]
    assert [row["threshold"] for row in report["per_class"]["test"]] == pytest.approx(list(thresholds.values()))
    assert report["model"]["labels"][0] == {"name": "urgent", "no": "no", "yes": "yes"}
    assert set(report["intervals"]["test"]) == {
        "subset_accuracy", "hamming_loss", "log_loss", "brier", "f1_micro", "f1_macro", "roc_auc"}  # fmt: skip
    names = [one["name"] for one in report["baselines"]["baselines"]]
    assert names == ["majority of each label", "logistic regression", "k nearest neighbours"]
    card = (made.bundle / "card.md").read_text()
    for line in (
        "Predicts which of 3 labels hold, any number of them: urgent (yes or no)",
        "## Labels",
        "threshold of",
        "coverage: sets to hold 0.8 of a row's true labels in the mean, fitted on 18 validation rows with any; on test",
    ):
        assert line in card
    assert "one of 3 classes" not in card
    evaluation = evaluate_model(made.predictor, home / "mail.csv")
    truth = np.array([[row[c] in ("yes", "1", "True") for c in LABELS] for row in rows_of(home / "mail.csv")])
    held = made.predictor.predict({n: [r[n] for r in rows_of(home / "mail.csv")] for n in HEADER[:3]}).prediction
    assert evaluation.metrics["f1_macro"] == pytest.approx(f1_score(truth, held, average="macro"), rel=1e-9)
    assert golden_problems(made.bundle) == []
    sets = report["answers"]["conformal"]
    assert sets["splits"]["validation"]["coverage"] >= sets["coverage"] == 0.8
    assert 0.6 < sets["splits"]["test"]["coverage"] <= 1.0
    inside, some = held_sets(made, home), truth.any(axis=1)
    share = (inside & truth).sum(axis=1)[some] / truth.sum(axis=1)[some]
    assert evaluation.trust["conformal"]["coverage"] == pytest.approx(share.mean(), rel=1e-9)


def held_sets(made: FitResult, home: Path) -> np.ndarray:
    rows = rows_of(home / "mail.csv")
    sets = made.predictor.predict({name: [row[name] for row in rows] for name in HEADER[:3]}).sets
    assert sets is not None
    return sets


def equal(found: Any, expected: Predictions) -> None:
    """The answers of two doors, of one row at a time, are the same to the bit."""
    np.testing.assert_array_equal(found.prediction, expected.prediction)
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    np.testing.assert_array_equal(found.uncertainty, expected.uncertainty)
    np.testing.assert_array_equal(found.abstained, expected.abstained)
    assert expected.sets is not None
    np.testing.assert_array_equal(found.sets, expected.sets)
    assert found.classes == expected.classes == LABELS


def test_every_door_gives_the_same_answers(made: FitResult, server: Client, home: Path):
    row = {"x0": 0.31, "x1": -0.2, "kind": "c"}
    expected = load_model("mail", registry=home / "registry").predict([row])
    assert expected.prediction.dtype == bool
    assert expected.prediction.shape == (1, 3)
    with mmjax.Client(f"http://127.0.0.1:{server.port}") as client:
        equal(client.predict([row]), expected)
        (model,) = client.models()
        assert (model.task, model.classes) == ("multilabel", LABELS)
        many = {name: [row[name]] * 5 for name in row}
        np.testing.assert_array_equal(client.predict(many).prediction, np.repeat(expected.prediction, 5, axis=0))
    reply = server.ask("POST", "/predict/tabular", json.dumps({"rows": [row]}).encode(), JSON).json
    assert reply["predictions"] == expected.prediction.astype(int).tolist()
    names = [[name for name, held in zip(LABELS, one, strict=True) if held] for one in expected.prediction]
    assert reply["labels"] == names
    np.testing.assert_array_equal(np.array(reply["probabilities"], np.float32), expected.probabilities)
    assert expected.sets is not None
    assert reply["sets"] == [[n for n, inside in zip(LABELS, one, strict=True) if inside] for one in expected.sets]
    assert server.ask("GET", "/models/mail").json["answers"] == ["sets", "abstained"]


def test_batch_prediction_writes_a_column_for_each_label(made: FitResult, home: Path, tmp_path: Path):
    predict_file(made.predictor, home / "mail.csv", tmp_path / "out.csv")
    printed = rows_of(tmp_path / "out.csv")
    assert list(printed[0]) == [
        "row", *(f"prediction_{n}" for n in LABELS), *(f"probability_{n}" for n in LABELS), "set", "abstained",
        "uncertainty",
    ]  # fmt: skip
    inside = held_sets(made, home)
    assert 0 < inside.mean() < 1
    assert [json.loads(row["set"]) for row in printed] == [
        [n for n, s in zip(LABELS, one, strict=True) if s] for one in inside
    ]
    given = rows_of(home / "mail.csv")
    expected = made.predictor.predict({name: [row[name] for row in given] for name in HEADER[:3]})
    for i, label in enumerate(made.predictor.schema.target.labels):
        texts = np.where(expected.prediction[:, i], label.positive, label.negative)
        assert [row[f"prediction_{label.column}"] for row in printed] == texts.tolist()
    read = read_predictions(tmp_path / "out.csv", made.predictor.schema.target)
    same = compare("printed", read, "predicted", answers_of(expected), tolerance=0.0, why="")
    assert same.agrees
    assert same.labels == 0


def test_every_way_to_ask_agrees(made: FitResult, server: Client, home: Path, tmp_path: Path):
    bundle = load_bundle(made.bundle)
    contents, predictor = bundle.contents, bundle_predictor(bundle)
    sample = read_sample(contents.config, contents.schema, home / "mail.csv", rows=20)
    predict_file(predictor, write_source(sample, contents.config, tmp_path), tmp_path / "out.csv")
    printed = read_predictions(tmp_path / "out.csv", contents.schema.target)
    found = compare_paths(predictor, sample, door=printed, bucket=64, allowed=1e-5, scratch=tmp_path)
    url = f"http://127.0.0.1:{server.port}"
    found += [compare_server(predictor, sample), compare_live(contents, predictor, sample, url)]
    assert all(way.agrees for way in found), found
    other = printed._replace(labels=label_tuples([("urgent",)] * 20))
    assert not compare_paths(predictor, sample, door=other, bucket=64, allowed=1e-5, scratch=tmp_path)[2].agrees


def test_the_protocol_answers_each_label(made: FitResult, server: Client):
    path = "/v2/models/mail"
    outputs = {spec["name"]: (spec["datatype"], spec["shape"]) for spec in server.ask("GET", path).json["outputs"]}
    assert outputs == {
        "probabilities": ("FP32", [-1, 3]), "predictions": ("INT64", [-1, 3]), "labels": ("BYTES", [-1, 3]),
        "uncertainty": ("FP32", [-1]), "sets": ("BOOL", [-1, 3]), "abstained": ("BOOL", [-1])}  # fmt: skip
    inputs = [
        {"name": name, "datatype": kind, "shape": [2], "data": cells}
        for name, kind, cells in (
            ("x0", "FP32", [0.3, -1.0]),
            ("x1", "FP32", [-0.2, 1.0]),
            ("kind", "BYTES", ["c", "a"]),
        )
    ]
    reply = server.ask("POST", f"{path}/infer", json.dumps({"inputs": inputs}).encode(), JSON).json
    told = {tensor["name"]: tensor for tensor in reply["outputs"]}
    expected = made.predictor.predict({"x0": [0.3, -1.0], "x1": [-0.2, 1.0], "kind": ["c", "a"]})
    assert told["predictions"]["shape"] == told["labels"]["shape"] == [2, 3]
    assert told["predictions"]["data"] == expected.prediction.astype(int).reshape(-1).tolist()
    texts = [(x.negative, x.positive)[int(h)] for row in expected.prediction for x, h in zip(
        made.predictor.schema.target.labels, row, strict=True)]  # fmt: skip
    assert told["labels"]["data"] == texts
    assert expected.sets is not None
    assert told["sets"]["data"] == expected.sets.reshape(-1).tolist()
    described = server.ask("GET", "/openapi.json").json["components"]["schemas"]
    assert described["ModelSummary"]["properties"]["task"]["enum"][-1] == "multilabel"
    before = server.counted("predicted", label="urgent")
    server.ask("POST", "/predict/tabular", b'{"rows": [{"x0": 3.0, "x1": 0, "kind": "a"}]}', JSON)
    assert server.counted("predicted", label="urgent") == before + 1


def test_the_page_shows_the_set_of_labels(made: FitResult, server: Client):
    row = {"x0": 0.4, "x1": 0.6, "kind": "a"}
    (inside,) = made.predictor.predict([row]).sets  # pyright: ignore[reportGeneralTypeIssues]
    with chromium() as page:
        page.open(f"http://127.0.0.1:{server.port}/#mail:1")
        page.until("document.querySelectorAll('#form .field').length === 3")
        for i, cell in enumerate(row.values()):
            page.run(f"document.querySelector('#field-{i}').value = {json.dumps(str(cell))}")
        page.run("document.querySelector('#form button').click()")
        page.until("document.querySelector('#result .answer') !== null")
        told = page.run("document.querySelector('#result').innerText")
    names = ", ".join(name for name, held in zip(LABELS, inside, strict=True) if held)
    assert f"Set\n{names or 'empty: no label is as probable as true ones are'}\n" in told


def test_init_writes_a_config_that_loads(home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    targets = [word for name in LABELS for word in ("--target", name)]
    ended = door(capsys, init, "--data", home / "mail.csv", *targets, "--output", tmp_path / "mail.yaml")
    assert ended.code == 0, ended.err
    config = load_config(str(tmp_path / "mail.yaml"))
    assert config.data.tabular is not None
    assert (config.data.tabular.target_column, config.data.tabular.task) == (LABELS, "multilabel")
    prepared = prepare(config)
    assert [label.positive for label in prepared.schema.target.labels] == ["yes", "1", "True"]


@pytest.mark.parametrize(
    ("name", "training", "more"),
    [
        ("realmlp_s", {"epochs": 1, "loss": "focal", "threshold": 0.4}, {}),
        ("tabm", {"epochs": 1}, {}),
        ("mlp", {"epochs": 1, "abstain_below": 0.9, "threshold": "mcc", "coverage": 0.9}, {"split": {"folds": 2}}),
        ("realmlp", {"epochs": 1, "class_weights": [{"label": "spam", "weight": 3.0}]}, {}),
    ],
)
def test_every_network_learns_labels(home: Path, name: str, training: dict, more: dict):
    size = {"architecture": {"hidden_layers": [8]} | ({"members": 2} if name == "tabm" else {})}
    quick = more | {"evaluation": {"baselines": "none"}}
    config = config_of(home / "mail.csv", name, {"name": name, **size}, training, **quick)
    with roughly():
        made = fit(config, runs_dir=home / "runs", registry=None)
    rows = {"x0": [0.5, -0.5], "x1": [0.0, 1.0], "kind": ["a", "b"]}
    found = made.predictor.predict(rows)
    assert found.probabilities is not None
    assert found.probabilities.shape == found.prediction.shape == (2, 3)
    thresholds = made.predictor.states.output.get("threshold", np.full(3, training.get("threshold", 0.5)))
    np.testing.assert_array_equal(found.prediction, found.probabilities >= thresholds)
    assert (found.uncertainty is not None) == (name in ("tabm", "mlp"))
    assert (found.sets is not None) == ("coverage" in training)
    if "abstain_below" in training:
        sure = np.maximum(found.probabilities, 1 - found.probabilities).min(axis=1)
        np.testing.assert_array_equal(found.abstained, sure < 0.9)


def test_a_matrix_of_classes_is_refused_for_labels(home: Path):
    config = config_of(home / "mail.csv", "m", {"name": "mlp"}, {"epochs": 1, "calibration": "matrix"})
    with pytest.raises(ConfigError, match=r"matrix expected at most 50 classes of which each row has one, got labels"):
        fit(config, runs_dir=home / "runs", registry=None)


def test_images_of_a_csv_have_labels_and_sets_of_them_too(tmp_path: Path):
    """The share of a row's labels in its set, as report and `evaluate` tell it, is that of what every door answers."""
    rng, rows = np.random.default_rng(0), []
    for i in range(100):
        red, bright = rng.random(2) < 0.5
        pixels = rng.integers(0, 60, (8, 8, 3)) + (120 if bright else 0) + np.array([60 if red else 0, 0, 0])
        (tmp_path / f"{i}.png").write_bytes(encode_png(pixels.astype(np.uint8)))
        rows.append((f"{i}.png", "yes" if red else "no", str(int(bright))))
    path = write_csv(tmp_path / "images.csv", ("image", "red", "bright"), rows)
    content = {
        "name": "tags",
        "data": {"image": {"path": str(path), "target_column": ["red", "bright"]}},
        "model": {"architecture": {"stages": [1], "width": 4}},
        "training": {"epochs": 3, "batch_size": 16, "coverage": 0.8},
        "evaluation": {"baselines": "none"},
        "precision": "float32",
    }
    with roughly():
        made = fit(config_from_dict(content, "test"), runs_dir=tmp_path / "runs", registry=tmp_path / "registry")
        evaluated = evaluate_model(made.predictor, path)
    assert set(made.metrics["test"]) >= {"f1_macro", "subset_accuracy"}
    files = [str(tmp_path / row[0]) for row in rows]
    found = made.predictor.predict({"image": files})
    assert found.classes == ("red", "bright")
    bound = made.predictor.states.output["least_probability"]
    assert found.sets is not None
    np.testing.assert_array_equal(found.sets, np.asarray(found.probabilities) >= bound)
    assert 0 < found.sets.mean() < 1
    truth = np.array([(row[1] == "yes", row[2] == "1") for row in rows])

    def coverage(some: np.ndarray) -> float:
        held = truth[some].any(axis=1)
        return ((found.sets & truth)[some].sum(axis=1)[held] / truth[some].sum(axis=1)[held]).mean()

    told = made.report["answers"]["conformal"]
    split = json.loads((made.run_dir / "split.json").read_bytes())
    for name in ("validation", "test"):
        assert told["splits"][name]["coverage"] == pytest.approx(coverage(np.array(split[name])), rel=1e-9)
    assert told["splits"]["validation"]["coverage"] >= 0.8
    assert evaluated.trust["conformal"]["coverage"] == pytest.approx(coverage(np.arange(100)), rel=1e-9)
    card = (made.bundle / "card.md").read_text()
    assert "coverage: sets to hold 0.8 of a row's true labels in the mean" in card
    predict_file(made.predictor, path, tmp_path / "out.csv")
    names = [[n for n, inside in zip(found.classes, one, strict=True) if inside] for one in found.sets]
    assert [json.loads(row["set"]) for row in rows_of(tmp_path / "out.csv")] == names
    with (
        thread(tmp_path / "registry", Limits(), models=("tags",), max_batch=1) as server,
        mmjax.Client(f"http://127.0.0.1:{server.client.port}") as client,
    ):
        for i in range(4):
            reply = server.client.ask("POST", "/predict/image", Path(files[i]).read_bytes(), PNG)
            assert reply.json["sets"] == [names[i]]
        np.testing.assert_array_equal(client.predict(files[:4]).sets, found.sets[:4])


def test_raw_tensors_and_rows_say_the_same_of_labels(tmp_path: Path):
    add_model(tmp_path / "registry", "tags", TAGS)
    values = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    cells = [{"x0": a, "x1": b, "bill": None} for a, b in values.astype(float).tolist()]
    with (
        thread(tmp_path / "registry", Limits(), models=("tags",)) as server,
        mmjax.Client(f"http://127.0.0.1:{server.client.port}") as client,
    ):
        raw, rows = client.predict(values), client.predict(cells)
    assert raw.prediction.dtype == bool
    assert raw.probabilities is not None
    np.testing.assert_array_equal(raw.prediction, rows.prediction)
    np.testing.assert_array_equal(raw.probabilities, rows.probabilities)
    np.testing.assert_array_equal(raw.prediction, raw.probabilities > 0.5)
    assert raw.prediction.any(axis=0).all()
    assert not raw.prediction.all(axis=0).any()
