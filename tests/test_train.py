"""Stories: a table and images are trained, tested, registered, loaded, evaluated and used, as a user would."""

import csv
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import mmjax
from mmjax.analysis.present import results_text
from mmjax.artifact.bundle import load_bundle
from mmjax.artifact.predictor import golden_problems
from mmjax.artifact.registry import resolve
from mmjax.config import Config
from mmjax.config_load import config_from_dict, load_config
from mmjax.errors import DataError, TrainingError
from mmjax.evaluate import evaluate_model
from mmjax.predict import predict_file
from mmjax.train import FitResult, fit
from mmjax.training.checkpoint import damages
from tests.rough import roughly

ROWS = 160
HEADER = ("id", "size", "colour", "when", "weight", "price", "kind")


def write_table(path: Path, *, rows: int = ROWS, seed: int = 0) -> Path:
    """A table with every kind of column, gaps, and two targets: `kind` (three classes) and `price`."""
    rng = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for i in range(rows):
            size, colour = rng.normal(), ("red", "green", "blue")[rng.integers(3)]
            kind = {"red": "a", "green": "b", "blue": "c"}[colour] if size < 1 else "a"
            shown = "" if rng.random() < 0.1 else f"{size:.4f}"
            when = f"2024-{rng.integers(1, 13):02d}-{rng.integers(1, 29):02d}"
            price = f"{3 * size + (colour == 'red'):.3f}"
            writer.writerow((f"r{i}", shown, colour, when, rng.integers(1, 4), price, kind))
    return path


def table_config(path: Path, **changes: dict) -> Config:
    """A quick config for such a table; `changes` replace whole sections."""
    content = {
        "name": "story",
        "data": {
            "tabular": {"path": str(path), "target_column": "kind", "id_column": "id", "ignore_columns": ["price"]}
        },
        "model": {"architecture": {"hidden_layers": [8]}},
        "training": {"epochs": 4, "batch_size": 16, "learning_rate": 0.05},
    }
    return config_from_dict(content | changes, "test")


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FitResult]:
    """One trained and registered model, and the folder it lives in."""
    home = tmp_path_factory.mktemp("story")
    config = table_config(write_table(home / "table.csv"))
    return home, fit(config, runs_dir=home / "runs", registry=home / "registry")


def test_a_run_keeps_everything(story) -> None:
    home, result = story
    found = {path.name for path in result.run_dir.iterdir()}
    assert found >= {
        *("config.yaml", "resolved.yaml", "schema.json", "split.json", "decisions.json", "metrics.jsonl", "log.jsonl"),
        *("run.json", "report.json", "card.md", "checkpoints", "bundle"),
    }
    assert result.bundle == home / "registry" / "story" / "1"
    assert (result.bundle / "manifest.json").is_file()
    record = json.loads((result.run_dir / "run.json").read_text())
    assert (record["status"], record["model"], record["version"]) == ("finished", "story", 1)
    assert set(result.metrics) == {"train", "validation", "test"}
    lines = (result.run_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]
    reread = load_config(result.run_dir / "resolved.yaml")
    assert reread.training == result.predictor.config.training


def test_the_realised_split_covers_every_row_once(story) -> None:
    _, result = story
    split = json.loads((result.run_dir / "split.json").read_text())
    rows = [row for name in ("train", "validation", "test") for row in split[name]]
    assert sorted(rows) == list(range(ROWS))
    assert len(split["train"]) == 112


def test_the_same_config_gives_the_same_bits(story, tmp_path: Path) -> None:
    home, first = story
    again = fit(table_config(home / "table.csv"), runs_dir=tmp_path / "runs", registry=tmp_path / "registry")
    assert load_bundle(again.bundle).digest == load_bundle(first.bundle).digest
    pairs = zip(jax.tree.leaves(again.predictor.states), jax.tree.leaves(first.predictor.states), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def test_the_card_tells_how_to_make_the_model_again(story, tmp_path: Path) -> None:
    _, first = story
    card = (first.bundle / "card.md").read_text()
    (tmp_path / "config.yaml").write_text(card.split("```json\n")[1].split("```")[0])
    again = fit(load_config(tmp_path / "config.yaml"), runs_dir=tmp_path / "runs", registry=None)
    pairs = zip(jax.tree.leaves(again.predictor.states), jax.tree.leaves(first.predictor.states), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    assert again.metrics == first.metrics


def test_what_copies_in_the_test_split_do_to_its_scores_is_told(tmp_path: Path) -> None:
    lines = write_table(tmp_path / "table.csv").read_text().splitlines()
    (tmp_path / "table.csv").write_text("\n".join([*lines, *lines[1:81]]) + "\n")
    with roughly():
        result = fit(table_config(tmp_path / "table.csv"), runs_dir=tmp_path / "runs", registry=None)
    split = json.loads((result.run_dir / "split.json").read_text())
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    trained = [rows[place] for place in split["train"]]
    others = [rows[place] for place in split["test"] if rows[place] not in trained]
    answers = result.predictor.predict(others).prediction
    right = [answer == row["kind"] for answer, row in zip(answers, others, strict=True)]
    leak, accuracy = result.report["leak"], f"{np.mean(right):.4f}"
    assert (leak["rows"], leak["of"]) == (len(split["test"]) - len(others), len(split["test"]))
    told = f"{leak['rows']} of 48 test rows are copies of training rows: scores on them are too good. "
    told += f"On the others accuracy is {accuracy}, not {result.metrics['test']['accuracy']:.4f}."
    assert f"## Limits\n\n- {told}\n" in (result.run_dir / "card.md").read_text()
    assert told in " ".join(results_text(result.report, width=80).split())


def test_another_seed_gives_another_model(story, tmp_path: Path) -> None:
    home, first = story
    other = fit(table_config(home / "table.csv", seed=1), runs_dir=tmp_path, registry=None)
    assert other.version is None
    assert load_bundle(other.bundle).digest != load_bundle(first.bundle).digest


def test_rows_files_and_bundles_give_one_answer(story, tmp_path: Path) -> None:
    home, result = story
    with (home / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    model = mmjax.load_model("story:1", registry=home / "registry")
    trained, loaded = result.predictor.predict(rows), model.predict(rows)
    assert np.array_equal(trained.probabilities, loaded.probabilities)
    written = predict_file(model, home / "table.csv", tmp_path / "out.csv")
    assert (written.rows, set(written.ignored)) == (ROWS, {"price", "kind"})
    with (tmp_path / "out.csv").open() as file:
        found = list(csv.reader(file))
    assert found[0] == ["id", "prediction", "probability_a", "probability_b", "probability_c"]
    assert [row[0] for row in found[1:]] == [row["id"] for row in rows]
    assert [row[1] for row in found[1:]] == list(loaded.prediction)
    np.testing.assert_array_equal(np.array([row[2:] for row in found[1:]], np.float32), loaded.probabilities)


def test_one_row_alone_gets_the_answer_it_gets_among_others(story) -> None:
    home, result = story
    with (home / "table.csv").open() as file:
        rows = list(csv.DictReader(file))[:40]
    together = result.predictor.predict(rows).probabilities
    alone = np.concatenate([result.predictor.predict([row]).probabilities for row in rows[:5]])
    np.testing.assert_allclose(alone, together[:5], atol=1e-6)


def test_evaluation_repeats_the_metrics_of_training(story, tmp_path: Path) -> None:
    home, result = story
    split = json.loads((result.run_dir / "split.json").read_text())
    lines = (home / "table.csv").read_text().splitlines()
    (tmp_path / "test.csv").write_text("\n".join([lines[0], *(lines[1 + row] for row in split["test"])]) + "\n")
    evaluation = evaluate_model("story:1", tmp_path / "test.csv", registry=str(home / "registry"))
    for name, value in evaluation.metrics.items():
        assert value == pytest.approx(result.metrics["test"][name], abs=1e-5), name


def test_golden_rows_prove_a_bundle(story) -> None:
    home, result = story
    assert golden_problems(result.bundle) == []
    assert resolve(home / "registry", "story").version == 1


def test_predictions_refuse_unknown_and_missing_columns(story, tmp_path: Path) -> None:
    _, result = story
    (tmp_path / "in.csv").write_text("id,siez,colour,weight\nr1,1.0,red,2\n")
    with pytest.raises(DataError) as caught:
        predict_file(result.predictor, tmp_path / "in.csv", tmp_path / "out.csv")
    text = str(caught.value)
    assert "expected column 'size'" in text
    assert "expected column 'when'" in text
    assert "unknown column 'siez'; rename or remove it; did you mean 'size'?" in text
    assert not (tmp_path / "out.csv").exists()


def test_unknown_categories_are_counted(story, tmp_path: Path) -> None:
    _, result = story
    (tmp_path / "in.csv").write_text("size,colour,when,weight\n1.0,mauve,2024-01-01,2\n?,red,,1\n")
    written = predict_file(result.predictor, tmp_path / "in.csv", tmp_path / "out.csv")
    assert written.unknown == {"colour": 1}
    rows = (tmp_path / "out.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["row", "1", "2"]


def test_regression_with_weights_and_an_average(tmp_path: Path) -> None:
    table = write_table(tmp_path / "table.csv")
    config = table_config(
        table,
        data={
            "tabular": {
                "path": str(table),
                "target_column": "price",
                "weight_column": "weight",
                "ignore_columns": ["kind", "id"],
            }
        },
        training={"epochs": 30, "batch_size": 16, "learning_rate": 0.02, "ema_decay": 0.9, "accumulate_steps": 2},
    )
    with roughly():
        result = fit(config, runs_dir=tmp_path / "runs", registry=None)
    assert result.predictor.schema.target.task == "regression"
    assert result.metrics["test"]["rmse"] < 2.0
    with table.open() as file:
        rows = list(csv.DictReader(file))
    values = result.predictor.predict(rows).prediction
    assert np.corrcoef(values, [float(row["price"]) for row in rows])[0, 1] > 0.9


def test_a_loss_that_explodes_stops_and_keeps_a_good_state(tmp_path: Path) -> None:
    table = write_table(tmp_path / "table.csv")
    exploding = {"epochs": 50, "batch_size": 16, "learning_rate": 1e30, "optimizer": "sgd", "schedule": "constant"}
    config = table_config(table, training=exploding)
    with pytest.raises(TrainingError, match="expected a finite loss, got a non-finite one at step"):
        fit(config, run_dir=tmp_path / "run", registry=tmp_path / "registry")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "diverged"
    assert not (tmp_path / "registry").exists()
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert damages(saved) == []
    position = json.loads((saved / "position.json").read_text())["position"]
    assert (saved.name, position["epoch"], position["over"]) == ("0", 1, False)  # the state before the epoch that broke


def test_images_travel_the_same_path(tmp_path: Path) -> None:
    from mmjax.data.decode import encode_png

    rng = np.random.default_rng(0)
    for index, name in enumerate(("dark", "light")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 100, (16, 16, 3)) + 150 * index
            (tmp_path / "images" / name / f"{i}.png").write_bytes(encode_png(pixels.astype(np.uint8)))
    config = config_from_dict(
        {
            "name": "shades",
            "data": {"image": {"path": str(tmp_path / "images")}},
            "model": {"architecture": {"stages": [1], "width": 4}},
            "training": {"epochs": 6, "batch_size": 8, "learning_rate": 0.02},
        },
        "test",
    )
    with roughly():
        result = fit(config, runs_dir=tmp_path / "runs", registry=tmp_path / "registry")
    assert result.predictor.schema.image.height_px == 16
    assert result.metrics["train"]["accuracy"] > 0.9
    assert golden_problems(result.bundle) == []
    written = predict_file(result.predictor, tmp_path / "images", tmp_path / "out.csv")
    assert written.rows == 40
    first = (tmp_path / "out.csv").read_text().splitlines()[1]
    assert first.startswith("dark/")
    evaluation = evaluate_model(result.bundle, tmp_path / "images")
    assert evaluation.rows == 40
