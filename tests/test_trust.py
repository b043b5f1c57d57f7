"""Stories: what is asked of answers is fitted, told, kept in the bundle, and given by every door."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmjax import Client, evaluate
from mmjax.analysis.answers import answer_lines, focal_line, reliability_rows
from mmjax.analysis.card import limits
from mmjax.artifact.bundle import load_bundle
from mmjax.artifact.models import load_model
from mmjax.config_load import config_from_dict
from mmjax.data.audit_target import sign_facts
from mmjax.data.prepare import prepare
from mmjax.errors import ConfigError
from mmjax.evaluate import evaluate_model
from mmjax.parts import build_parts
from mmjax.predict import command
from mmjax.recipe import resolve_prepared
from mmjax.serving.engine import load_models
from mmjax.serving.limits import Limits
from mmjax.serving.openapi_schemas import MODEL
from mmjax.serving.wire import Reply
from mmjax.train import FitResult, fit
from mmjax.training.conformal import coverage_range
from mmjax.training.setup import set_up
from tests.chromium import chromium
from tests.doors import door, write_csv
from tests.live import Thread, request, thread
from tests.rough import roughly
from tests.test_express import ORDINARY

ROW = {"size": 0.25, "colour": "red"}


def make_table(path: Path, rows: int = 300) -> Path:
    random, made = np.random.default_rng(0), []
    for _ in range(rows):
        size, colour = random.normal(), random.integers(3)
        score = size + (colour == 0) + random.logistic() - 1.5
        made.append((f"{size:.3f}", ("red", "green", "blue")[colour], "yes" if score > 0 else "no", f"{9 + score:.4f}"))
    return write_csv(path, ("size", "colour", "bought", "amount"), made)


def trained(home: Path, name: str, target: str, other: str, **training: Any) -> FitResult:
    table = {"path": str(home / "table.csv"), "target_column": target, "ignore_columns": [other]}
    table |= {"train_split": 0.4, "validation_split": 0.3, "test_split": 0.3}
    model = {"name": "mlp", "architecture": {"hidden_layers": [4]}}
    training = {"epochs": 4, "batch_size": 20, "learning_rate": 0.02} | training
    config = {"name": name, "data": {"tabular": table}, "model": model, "training": training}
    lines: list[str] = []
    with roughly():
        done = fit(
            config_from_dict(config, "test"), runs_dir=home / "runs", registry=home / "registry", tell=lines.append
        )
    (home / f"{name}.txt").write_text("\n".join(lines))
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("answers")
    make_table(home / "table.csv")
    asked = {"threshold": "f1", "coverage": 0.8, "abstain_below": 0.6, "calibration": "temperature"}
    trained(home, "buys", "bought", "amount", **asked, loss="focal", class_weights="balanced")
    trained(home, "sums", "amount", "bought", coverage=0.8)
    return home


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Thread]:
    with thread(home / "registry", Limits(), models=("buys", "sums"), max_batch=16) as server:
        yield server


def report_of(home: Path, name: str) -> dict[str, Any]:
    return load_bundle(home / "registry" / name / "1").contents.report


def test_report_card_and_terminal_tell_the_same(home: Path):
    report, card = report_of(home, "buys"), (home / "registry" / "buys" / "1" / "card.md").read_text()
    answers, told = report["answers"], (home / "buys.txt").read_text()
    assert set(answers) == {"calibration", "threshold", "conformal", "abstention"}
    lines = answer_lines(report)
    first, *others = (line.partition(":")[0] for line in lines)
    assert first == "calibration of reweighted classes"
    assert others == ["threshold", "coverage", "abstained", "probabilities"]
    assert all(line in told for line in lines)
    assert lines[0].startswith(f"{first}: temperature {answers['calibration']['temperature']:.3g} fitted on 90 val")
    assert " -> " in lines[0]
    assert "## How far to trust an answer" in card
    for split in ("validation", "test"):
        after = answers["calibration"]["splits"][split]["after"]
        assert {name: report["metrics"][split][name] for name in ("ece", "brier", "log_loss")} == {
            name: after[name] for name in ("ece", "brier", "log_loss")
        }
        rows = sum(part["rows"] for part in after["curve"])
        gap = sum(part["rows"] * abs(part["accuracy"] - part["confidence"]) for part in after["curve"])
        assert (rows, gap / rows) == (90, pytest.approx(after["ece"]))
        assert answers["threshold"]["splits"][split]["after"]["f1"] == pytest.approx(report["metrics"][split]["f1"])
    assert (
        answers["threshold"]["splits"]["validation"]["after"]["f1"]
        >= (answers["threshold"]["splits"]["validation"]["before"]["f1"])
    )
    assert sum(answers["conformal"]["splits"]["test"]["sizes"].values()) == pytest.approx(1.0)
    assert [row[3] for row in reliability_rows(report)] == [
        f"{part['rows']:.0f}" for part in answers["calibration"]["splits"]["test"]["after"]["curve"]
    ]


def test_calibration_undoes_what_focal_loss_and_class_weights_do_to_sureness(home: Path):
    """Focal loss makes a network timid: the temperature sharpens it, and the validation log loss falls."""
    fact = report_of(home, "buys")["answers"]["calibration"]
    assert fact["temperature"] < 1.0
    validation = fact["splits"]["validation"]
    assert validation["after"]["log_loss"] <= validation["before"]["log_loss"]


def test_probabilities_of_reweighted_classes_are_told_beside_the_shares_of_rows(home: Path):
    """On the whole table `evaluate` and the model's own answers agree on both."""
    predictor, report = load_model("buys", registry=home / "registry"), report_of(home, "buys")
    with (home / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    answered = predictor.predict({name: np.array([row[name] for row in rows], object) for name in ("size", "colour")})
    assert answered.probabilities is not None
    shares = evaluate_model(predictor, home / "table.csv").trust["calibration"]["shares"]
    assert shares["predicted"] == pytest.approx(np.mean(answered.probabilities, axis=0), abs=1e-5)
    yes = predictor.schema.target.classes.index("yes")
    observed = np.mean([row["bought"] == "yes" for row in rows])
    assert shares["observed"][yes] == pytest.approx(observed)
    told = report["answers"]["calibration"]["splits"]["test"]["shares"]
    line = answer_lines(report)[-1]
    each = f"yes {told['predicted'][yes]:.4f} ({told['observed'][yes]:.4f}); they rank rows"
    assert f"on test the mean of each, and its share of the rows: {each}" in line
    assert any(limit.startswith("Probabilities: those of reweighted classes") for limit in limits(report))
    plain = report | {"config": {"training": {"class_weights": "none", "calibration": "temperature"}}}
    assert not any("reweighted" in line for line in (*answer_lines(plain), *limits(plain)))


def test_a_loaded_model_and_evaluate_give_what_the_report_says(home: Path):
    for name in ("buys", "sums"):
        predictor, fact = load_model(name, registry=home / "registry"), report_of(home, name)["answers"]["conformal"]
        evaluation = evaluate_model(predictor, home / "table.csv")
        splits = fact["splits"]
        rows = {"train": 120, "validation": 90, "test": 90}
        expected = sum(rows[split] * splits[split]["coverage"] for split in rows) / 300
        assert evaluation.trust["conformal"]["coverage"] == pytest.approx(expected)
        assert splits["validation"]["coverage"] >= 0.8


def test_predict_adds_columns(home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    found = {}
    for name, extra in (("buys", ("--abstain-below", "0.9")), ("sums", ())):
        output = tmp_path / f"{name}.csv"
        arguments = ("--model", name, "--input", home / "table.csv", "--output", output)
        assert door(capsys, command, *arguments, "--registry", home / "registry", *extra).code == 0
        with output.open(newline="") as file:
            found[name] = list(csv.DictReader(file))
    predictor = load_model("buys", registry=home / "registry")
    columns = {"size": [], "colour": []}
    with (home / "table.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            columns["size"].append(row["size"])
            columns["colour"].append(row["colour"])
    expected = predictor.predict(columns)
    assert expected.sets is not None
    assert expected.probabilities is not None
    for i, row in enumerate(found["buys"]):
        assert json.loads(row["set"]) == [expected.classes[k] for k in np.flatnonzero(expected.sets[i])]
        assert row["abstained"] == ("true" if expected.probabilities[i].max() < np.float32(0.9) else "false")
        assert row["prediction"] == expected.prediction[i]
    assert list(found["sums"][0]) == ["row", "prediction", "lower", "upper"]
    assert all(float(row["lower"]) < float(row["prediction"]) < float(row["upper"]) for row in found["sums"])
    refused = door(capsys, command, *arguments, "--registry", home / "registry", "--abstain-below", "0.5")
    assert refused.code == 2
    assert "--abstain-below: expected a classifier, got a model of a number; remove it (sums)" in refused.err


def ask(server: Thread, name: str, rows: list[dict[str, Any]], *headers: str) -> dict[str, Any]:
    body = json.dumps({"model": name, "rows": rows}).encode()
    reply = server.client.say(request("POST", "/predict/tabular", body, ["Content-Type: application/json", *headers]))
    assert reply.status == 200, reply.body
    return {k: v for k, v in reply.json.items() if k not in ("request_id", "inference_time_ms")}


def test_the_server_answers_the_same_on_both_ways(server: Thread, home: Path):
    rows = [{"size": float(size), "colour": colour} for size in (-2, 0, 0.5, 3) for colour in ("red", "blue", None)]
    for name, added in (("buys", ["sets", "abstained"]), ("sums", ["intervals"])):
        express, ordinary = ask(server, name, rows), ask(server, name, rows, ORDINARY)
        assert express == ordinary
        assert list(express)[-len(added) :] == added
        assert server.client.ask("GET", f"/models/{name}").json["answers"] == added
        expected = load_model(name, registry=home / "registry").predict(rows)
        if expected.sets is not None:
            assert express["sets"] == [[expected.classes[k] for k in np.flatnonzero(row)] for row in expected.sets]
            assert express["labels"] == expected.prediction.tolist()
            assert expected.abstained is not None
            assert express["abstained"] == expected.abstained.tolist()
        else:
            assert expected.intervals is not None
            np.testing.assert_allclose(express["intervals"], expected.intervals, rtol=1e-6)
    assert set(added) <= set(Reply.__struct_fields__)
    assert "answers" in MODEL["properties"]


def test_the_open_inference_protocol_tells_them_as_outputs(server: Thread, home: Path):
    cells = {"size": ("FP32", [-2, 0, 3]), "colour": ("BYTES", ["red", "blue", "red"])}
    asked = [{"name": n, "datatype": kind, "shape": [3], "data": data} for n, (kind, data) in cells.items()]
    for name in ("buys", "sums"):
        specs = server.client.ask("GET", f"/v2/models/{name}").json["outputs"]
        reply = server.client.ask("POST", f"/v2/models/{name}/infer", json.dumps({"inputs": asked}))
        found = {output["name"]: output for output in reply.json["outputs"]}
        assert list(found) == [spec["name"] for spec in specs]
        expected = load_model(name, registry=home / "registry").predict({n: data for n, (_, data) in cells.items()})
        for spec in specs[-2:] if name == "buys" else specs[-1:]:
            told, wanted = found[spec["name"]], getattr(expected, spec["name"])
            assert (told["datatype"], told["shape"]) == (spec["datatype"], list(wanted.shape))
            assert spec["shape"][1:] == list(wanted.shape)[1:]
            np.testing.assert_allclose(np.reshape(told["data"], wanted.shape), wanted, rtol=1e-6)


def test_the_client_hears_all_of_it(server: Thread, home: Path):
    sizes = np.linspace(-3, 3, 40)
    with Client(f"http://127.0.0.1:{server.client.port}") as client:
        rows = {"size": sizes, "colour": ["red", "blue"] * 20}
        buys, sums = client.predict(rows, model="buys"), client.predict(rows, model="sums")
    local = {name: load_model(name, registry=home / "registry").predict(rows) for name in ("buys", "sums")}
    assert buys.sets is not None
    assert sums.intervals is not None
    assert sums.sets is None
    np.testing.assert_array_equal(buys.sets, local["buys"].sets)
    np.testing.assert_array_equal(buys.abstained, local["buys"].abstained)
    assert local["sums"].intervals is not None
    np.testing.assert_allclose(sums.intervals, local["sums"].intervals, rtol=1e-6)


def test_a_server_may_be_told_when_to_abstain(home: Path):
    models = load_models(("buys", "sums"), home / "registry", abstain_below=0.999)
    assert models["buys"].description["answers"] == ["sets", "abstained"]
    assert models["buys"].predictor.predict([ROW]).abstained == [True]
    assert models["sums"].description["answers"] == ["intervals"]
    with pytest.raises(ConfigError, match=r"--abstain-below: expected a number above 0.5, as .* got 0.5 \(buys\)"):
        load_models(("buys",), home / "registry", abstain_below=0.5)


def test_rows_without_weight_bound_nothing_and_that_is_said_before_training(tmp_path: Path):
    random = np.random.default_rng(0)
    rows = [(f"{random.normal():.3f}", "ab"[i % 2], int(i % 10 == 0)) for i in range(200)]
    table = {"path": str(write_csv(tmp_path / "table.csv", ("size", "kind", "weight"), rows))}
    table |= {"target_column": "kind", "weight_column": "weight"}
    content = {"name": "light", "data": {"tabular": table}, "training": {"coverage": 0.9, "epochs": 1}}
    events: list[object] = []
    refused = r"training.coverage: 0.9 expected at least 9 validation rows with a weight above 0, got [0-8]"
    with pytest.raises(ConfigError, match=refused):
        fit(config_from_dict(content, "test"), runs_dir=tmp_path, registry=None, callbacks=(events.append,))
    assert not events


@pytest.mark.parametrize("several", [False, True])
def test_weightless_validation_rows_calibrate_nothing_and_that_is_said_before_training(several: bool, tmp_path: Path):
    """400 rows to choose by would calibrate; those with a weight do not, and where none has one it is refused."""
    random, notes = np.random.default_rng(0), {}
    for name, weighing in (("few", 10), ("none", 0)):
        parts = ["train"] * 100 + ["validation"] * 400
        weights = [1] * 100 + [1] * weighing + [0] * (400 - weighing)
        cells = [(f"{random.normal():.3f}", "ab"[i % 2], "xy"[i // 2 % 2]) for i in range(500)]
        rows = [(*row, part, weight) for row, part, weight in zip(cells, parts, weights, strict=True)]
        path = write_csv(tmp_path / f"{name}.csv", ("size", "kind", "other", "part", "weight"), rows)
        target = (
            {"target_column": ["kind", "other"]} if several else {"target_column": "kind", "ignore_columns": ["other"]}
        )
        table = {"path": str(path), "weight_column": "weight", **target}
        content = {"name": name, "data": {"tabular": table}, "split": {"strategy": "column", "column": "part"}}
        config = config_from_dict(content, "test")
        prepared = prepare(config)
        notes[name] = {made.key: made for made in resolve_prepared(config, prepared)[1]}["training.calibration"]
        asked = config_from_dict(content | {"training": {"calibration": "temperature", "epochs": 1}}, "test")
        config, _ = resolve_prepared(asked, prepared)
        if weighing:
            set_up(config, prepared, build_parts(config, prepared.schema), ahead=False)
            continue
        with pytest.raises(
            ConfigError, match=r"calibration: temperature expected .* with a weight above 0, got .* 0 rows"
        ):
            set_up(config, prepared, build_parts(config, prepared.schema), ahead=False)
    assert [made.value for made in notes.values()] == ["none", "none"]
    assert notes["few"].why == "10 validation rows with a weight above 0, 100 are needed"


def test_intervals_beyond_what_the_target_ever_was_are_told(home: Path):
    """Waits are never negative; intervals of one width for all reach below 0 where they are short."""
    random = np.random.default_rng(0)
    rows = [(f"{x:.3f}", f"{np.exp(x + 0.5 * random.normal()):.4f}") for x in random.normal(size=300)]
    path = write_csv(home / "waits.csv", ("size", "wait"), rows)
    table = {"path": str(path), "target_column": "wait", "train_split": 0.4, "validation_split": 0.3, "test_split": 0.3}
    training = {"epochs": 4, "batch_size": 20, "learning_rate": 0.02, "coverage": 0.9}
    content = {"name": "waits", "data": {"tabular": table}, "model": {"name": "mlp"}, "training": training}
    with roughly():
        done = fit(config_from_dict(content, "test"), runs_dir=home / "runs", registry=home / "registry")
    fact = done.report["answers"]["conformal"]
    (line,) = (line for line in answer_lines(done.report) if line.startswith("intervals: "))
    share = fact["splits"]["test"]["below_zero"]
    assert f"on test {share:.1%} reach below 0, where no training target is" in line
    assert line.endswith("try training.loss: pinball, or a column with its logarithm as the target")
    assert line in (done.bundle / "card.md").read_text().replace("\\", "")
    fact["splits"]["test"]["below_zero"] = 0.0003
    (few,) = (line for line in answer_lines(done.report) if line.startswith("intervals: "))
    assert few.startswith("intervals: on test less than 0.1% reach below 0")
    low = evaluate_model(done.predictor, path).trust["conformal"]["below_zero"]
    found = done.predictor.predict({"size": [float(row[0]) for row in rows]}).intervals
    assert found is not None
    assert low == pytest.approx(np.mean(found.reshape(-1, 2)[:, 0] < 0))
    assert 0.0 < low < 1.0
    quiet = config_from_dict(content | {"audit": {"tails": "ignore"}}, "test")
    with roughly():
        silent = fit(quiet, runs_dir=home / "runs", registry=None)
    assert not any(line.startswith("intervals: ") for line in answer_lines(silent.report))


@pytest.mark.parametrize(
    ("values", "never", "advice"),
    [
        ([1.0, 2.0], "negative", "try training.loss: pinball, or a column with its logarithm as the target"),
        ([0.0, 2.0], "negative", "try training.loss: pinball, or a column with the logarithm of 1 more as the target"),
        (
            [-3.0, 0.0],
            "positive",
            "try training.loss: pinball, or a column with the logarithm of its negative as the target",
        ),
    ],
)
def test_a_sign_that_no_target_has(values: list[float], never: str, advice: str):
    assert sign_facts(np.array(values), quantiles=False) == {"never": never, "advice": advice}
    assert sign_facts(np.array([*values, -values[0], -values[1]]), quantiles=False) == {}
    assert "pinball" not in sign_facts(np.array(values), quantiles=True)["advice"]


def test_coverage_is_told_with_the_range_of_chance(home: Path):
    for name, where in (("buys", "test"), ("sums", "test")):
        report = report_of(home, name)
        fact = report["answers"]["conformal"]
        low, high = coverage_range(0.8, 90, 90)
        assert fact["splits"][where]["expected"] == [low, high]
        assert "expected" not in fact["splits"]["validation"]  # there it is what it was made to be
        told = f"({low:.3g} to {high:.3g} is expected of so many rows in 95 % of cases"
        assert sum(told in line for line in answer_lines(report)) == 1
        assert told in (home / "registry" / name / "1" / "card.md").read_text()
        fact["splits"][where]["coverage"] = low - 0.01
        assert any("less than chance leaves, these rows may differ" in line for line in answer_lines(report))
        fact["splits"][where]["coverage"] = high + 0.01  # no fault
        assert any("; ties, and the mean over models of folds, cover more" in line for line in answer_lines(report))


def test_rows_that_were_seen_in_training_get_no_range_of_chance(home: Path, capsys: pytest.CaptureFixture[str]):
    seen, others = home / "table.csv", make_table(home / "others.csv", 250)
    for data, expected in ((seen, False), (others, True)):
        where = ["--model", "sums", "--registry", str(home / "registry"), "--data", str(data), "--json"]
        found = door(capsys, evaluate.command, *where).document
        assert ("expected" in found["answers"]["conformal"]["splits"]["test"]) is expected


def test_the_page_shows_sets_and_who_abstains(server: Thread, home: Path):
    with chromium() as page:
        page.open(f"http://127.0.0.1:{server.client.port}/#buys:1")
        page.until("document.querySelectorAll('#form .field').length === 2")
        page.run("document.querySelector('#field-0').value = '0'")
        page.run("document.querySelector('#form button').click()")
        page.until("document.querySelector('#result .answer') !== null")
        told = page.run("document.querySelector('#result').innerText")
    expected = load_model("buys", registry=home / "registry").predict([{"size": 0.0, "colour": None}])
    assert expected.sets is not None
    assert expected.abstained is not None
    names = ", ".join(expected.classes[k] for k in np.flatnonzero(expected.sets[0]))
    assert f"Set\n{names or 'empty: no class is as probable as true ones are'}\n" in told
    assert f"Abstained\n{'yes: better ask somebody else' if expected.abstained[0] else 'no'}\n" in told
    assert "Uncertainty" not in told


def test_focal_loss_that_nothing_calibrated_is_told() -> None:
    report: Any = {"config": {"training": {"loss": "focal"}}, "answers": {}}
    assert "not calibrated; give more validation rows" in focal_line(report)
    assert focal_line(report | {"answers": {"calibration": {}}}) == ""
    assert focal_line(report | {"config": {"training": {"loss": "cross_entropy"}}}) == ""
