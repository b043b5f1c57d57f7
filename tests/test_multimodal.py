"""Images beside columns, from a CSV file to answers: the label needs both, and the model that sees both knows it."""

import csv
import io
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

import mmjax
from mmjax.artifact.bundle import load_bundle
from mmjax.artifact.parity import compare_paths, read_predictions
from mmjax.artifact.predictor import Predictor, load_predictor
from mmjax.artifact.sample import golden_sample, read_sample, write_source
from mmjax.config import Config
from mmjax.config_load import config_from_dict, load_config
from mmjax.data.decode import encode_png
from mmjax.errors import ConfigError, DataError
from mmjax.evaluate import evaluate_model
from mmjax.predict import predict_file
from mmjax.serving.parity import compare_forms, compare_server
from mmjax.train import FitResult, fit
from tests.rough import roughly

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared/data/multimodal"


def draw(kind: int, noise: np.random.Generator) -> bytes:
    """A square or a bar on a noisy ground, somewhere."""
    image = noise.integers(20, 60, (16, 16, 3)).astype(np.uint8)
    down, across = noise.integers(0, 7, 2)
    height, width = ((8, 8), (3, 14))[kind]
    image[down : down + height, across : across + width] = (220, 90, 60)
    return encode_png(image)


def make_shapes(folder: Path, rows: int = 240) -> Path:
    """Rows of a drawn shape and a number: which of both is which is the label (exclusive or), so each alone is luck."""
    noise = np.random.default_rng(0)
    (folder / "drawn").mkdir(parents=True)
    with (folder / "shapes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "picture", "weight", "colour", "label"))
        for i in range(rows):
            kind, heavy = noise.integers(2, size=2).tolist()
            (folder / f"drawn/{i}.png").write_bytes(draw(kind, noise))
            weight = f"{noise.normal(2 if heavy else -2, 0.7):.3f}"
            colour = "red" if noise.random() < 0.5 else "blue"
            writer.writerow((f"r{i}", f"drawn/{i}.png", weight, colour, "ny"[kind ^ heavy]))
    return folder / "shapes.csv"


def config_of(path: Path, **more: Any) -> Config:
    images = {"columns": ["picture"], "image_size": [16, 16], "augmentation": {"horizontal_flip": True, "shift": 0.0}}
    table = {"path": str(path), "target_column": "label", "id_column": "id", "images": images}
    fusion = {"width": 16, "hidden_layers": [16], "modality_dropout": 0.2} | more.pop("fusion", {})
    model = {"architecture": {"stages": [1, 1], "width": 8}, "fusion": fusion}
    training = {"epochs": 10, "batch_size": 16, "learning_rate": 5e-3}
    document = {"name": "shapes", "data": {"tabular": table}, "model": model, "training": training}
    document |= {"precision": "float32"}  # programs in bfloat16 are compiled anew each time
    return config_from_dict(document | more, "test")


class Trained(NamedTuple):
    home: Path
    table: Path
    result: FitResult
    predictor: Predictor


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    home = tmp_path_factory.mktemp("multimodal")
    table = make_shapes(home)
    with roughly():
        result = fit(config_of(table), runs_dir=home / "runs", registry=home / "registry")
    return Trained(home, table, result, load_predictor(result.bundle))


def test_the_model_that_sees_both_beats_either_alone_and_the_report_says_so(trained: Trained) -> None:
    report = trained.result.report
    each = {seen["name"]: seen for seen in report["modalities"]["each"]}
    accuracy = {name: seen["metrics"]["accuracy"] for name, seen in each.items()}
    assert accuracy["images and columns"] > 0.9
    assert accuracy["columns alone"] < 0.75
    assert accuracy["images alone"] < 0.75
    assert each["columns alone"]["difference"][0] > 0
    assert "without the images (worse)" in report["modalities"]["verdict"]
    assert each["images and columns"]["metrics"]["accuracy"] == report["metrics"]["test"]["accuracy"]
    card = (trained.result.run_dir / "card.md").read_text()
    assert "## What images and columns add" in card
    assert "| columns alone |" in card
    # logistic regression on the columns, with the picture hidden from it, is no better than luck
    names = [one["name"] for one in report["baselines"]["baselines"]]
    assert "logistic regression" in names
    assert not report["baselines"]["beaten"]
    assert (report["config"]["model"]["type"], report["config"]["model"]["name"]) == ("multimodal", "resnet")


def test_trunks_may_answer_by_themselves_and_not_where_there_are_no_columns(trained: Trained, tmp_path: Path) -> None:
    heads, run = {"own_heads": ["columns", "images"]}, {"runs_dir": tmp_path / "runs", "registry": None}
    table = trained.home / "alike.csv"  # what is drawn is the label, and the number tells it too
    with trained.table.open() as file:
        head, *rows = csv.reader(file)
    heavy = [float(row[2]) > 0 for row in rows]
    drawn = [(row[4] == "y") ^ own for row, own in zip(rows, heavy, strict=True)]
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for (name, picture, weight, colour, _), own, one in zip(rows, heavy, drawn, strict=True):
            writer.writerow((name, picture, float(weight) * (1 if own == one else -1), colour, "ny"[one]))
    with roughly():
        result = fit(config_of(table, fusion=heads), **run)
    assert result.metrics["test"]["accuracy"] > 0.9
    predictor = load_predictor(result.bundle)
    predict_file(predictor, with_gaps(trained), tmp_path / "out.csv", images=trained.home)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 13
    config = config_of(trained.table, fusion=heads)
    assert config.data.tabular is not None
    images = msgspec.structs.replace(config.data.tabular, ignore_columns=("weight", "colour"))
    alone = msgspec.structs.replace(config, data=msgspec.structs.replace(config.data, tabular=images))
    with pytest.raises(ConfigError, match="own_heads: expected columns beside the images, got none; remove it"):
        fit(alone, **run)


def test_every_way_to_ask_gives_one_answer(trained: Trained, tmp_path: Path) -> None:
    contents = load_bundle(trained.result.bundle).contents
    for sample in (
        golden_sample(contents),
        read_sample(contents.config, contents.schema, with_gaps(trained), rows=12),
    ):
        scratch = tmp_path / str(len(sample.what))
        scratch.mkdir()
        source = write_source(sample._replace(source=None), contents.config, scratch)
        predict_file(trained.predictor, source, scratch / "out.csv", images=scratch)
        door = read_predictions(scratch / "out.csv", trained.predictor.schema.target)
        found = compare_paths(trained.predictor, sample, door=door, bucket=16, allowed=5e-3, scratch=scratch)
        found += [compare_server(trained.predictor, sample), *compare_forms(trained.predictor, sample)]
        assert [one.problem for one in found if not one.agrees] == []
        assert len(found) == 10


def with_gaps(trained: Trained) -> Path:
    """The first rows of the table; some have no picture, one no number and one neither number nor colour."""
    with trained.table.open() as file:
        rows = list(csv.reader(file))[:13]
    rows[2][1] = rows[3][1] = ""
    rows[3][2] = rows[4][2] = rows[5][2] = "?"
    rows[5][3] = ""
    path = trained.home / "gaps.csv"
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    path.write_text(text.getvalue())
    return path


def test_files_are_predicted_and_scored_with_paths_from_another_folder_too(trained: Trained, tmp_path: Path) -> None:
    written = predict_file(trained.predictor, with_gaps(trained), tmp_path / "out.csv")
    assert (written.rows, written.ignored) == (12, ("label",))
    told: list[str] = []
    evaluate_model(trained.predictor, with_gaps(trained), tell=told.append)
    missing = ("images, known to the model as such: picture 2", "cells, known to the model as such: weight 3, colour 1")
    assert written.notes == tuple(told) == tuple(f"{trained.home}/gaps.csv: missing {line}" for line in missing)
    bare = tmp_path / "bare.csv"
    bare.write_text("weight,colour\n1,red\n")
    found = predict_file(trained.predictor, bare, tmp_path / "out.csv").notes
    assert found == (f"{bare}: left out, missing in every row: picture",)
    moved = tmp_path / "moved.csv"
    moved.write_text(trained.table.read_text())
    with pytest.raises(DataError) as error:
        predict_file(trained.predictor, moved, tmp_path / "out.csv")
    assert f"{moved}:2: column 'picture': expected an image file in {tmp_path}" in str(error.value)
    assert "--images names another folder" in str(error.value)
    predict_file(trained.predictor, moved, tmp_path / "moved-out.csv", images=trained.home)
    predict_file(trained.predictor, trained.table, tmp_path / "out.csv")
    assert (tmp_path / "moved-out.csv").read_bytes() == (tmp_path / "out.csv").read_bytes()
    here, there = (
        evaluate_model(trained.predictor, path, images=images).metrics
        for path, images in ((trained.table, None), (moved, trained.home))
    )
    assert here == there
    assert here["accuracy"] > 0.9
    with pytest.raises(ConfigError, match="expected a folder, got nothing"):
        evaluate_model(trained.predictor, moved, images=tmp_path / "none")
    told = r"expected a CSV file whose columns \(picture\) name images, got a folder; the model answers rows"
    with pytest.raises(DataError, match=told):
        predict_file(trained.predictor, tmp_path, tmp_path / "out.csv")
    with pytest.raises(DataError, match=told):
        evaluate_model(trained.predictor, tmp_path)


def test_a_broken_image_is_told_with_its_line(trained: Trained, tmp_path: Path) -> None:
    (trained.home / "drawn/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    bad = trained.home / "bad.csv"
    bad.write_text(trained.table.read_text().replace("drawn/4.png", "drawn/broken.png"))
    for ask in (
        lambda: predict_file(trained.predictor, bad, tmp_path / "out.csv"),
        lambda: evaluate_model(trained.predictor, bad),
    ):
        with pytest.raises(DataError, match=r"bad.csv:6: column 'picture': expected a readable image \(PNG is"):
            ask()
    assert not (tmp_path / "out.csv").exists()
    bad.write_text(bad.read_text().replace("drawn/7.png", "drawn/none.png"))
    written = predict_file(trained.predictor, bad, tmp_path / "out.csv", on_invalid="report")
    found = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    left_out: list[str] = []
    assert evaluate_model(trained.predictor, bad, on_invalid="drop", tell=left_out.append).rows == 238
    assert "expected an image file" in left_out[1]
    assert "expected a readable image" in left_out[3]
    problems = {row["id"]: row["problem"] for row in found if row["problem"]}
    assert (written.rows, written.invalid, len(found)) == (240, 2, 240)
    assert problems["r4"].startswith("column 'picture': expected a readable image (PNG is")
    assert problems["r7"].startswith("column 'picture': expected an image file in")
    assert problems["r7"].count("column") == 1
    assert all((row["prediction"] == "") == (row["id"] in problems) for row in found)


def test_either_side_may_be_missing_from_a_row_or_left_out_of_all(trained: Trained) -> None:
    predict, picture = trained.predictor.predict, trained.home / "drawn/0.png"
    bare = predict([{"picture": None, "weight": 2.0, "colour": "red"}]).probabilities
    left = predict([{"weight": 2.0, "colour": "red"}]).probabilities
    np.testing.assert_array_equal(bare, left)
    np.testing.assert_array_equal(
        predict([{"picture": picture.read_bytes(), "weight": None, "colour": None}]).probabilities,
        predict({"picture": [str(picture)]}).probabilities,
    )
    with pytest.raises(DataError, match="column 'colour'"):
        predict([{"picture": str(picture), "weight": 2.0}])
    with pytest.raises(DataError, match="unknown column 'pictur'"):
        predict([{"pictur": str(picture), "weight": 2.0, "colour": "red"}])


def test_several_images_a_row_folds_and_a_number_to_predict(tmp_path: Path) -> None:
    """A row's value is the bars among its three pictures, some of which are missing, times a sign in a column."""
    noise = np.random.default_rng(1)
    rows = []
    for i in range(60):
        kinds, cells = noise.integers(2, size=3), []
        for k, kind in enumerate(kinds.tolist()):
            (tmp_path / f"{i}-{k}.png").write_bytes(draw(kind, noise))
            cells.append(f"{i}-{k}.png" if noise.random() < 0.8 else "")
        sign = noise.choice(["up", "down"])
        rows.append((*cells, sign, 100.5 + kinds.sum() * (1 if sign == "up" else -1)))
    with (tmp_path / "many.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("a", "b", "c", "sign", "value"), *rows])
    table: dict[str, Any] = {"path": str(tmp_path / "many.csv"), "target_column": "value", "task": "regression"}
    table["images"] = {"columns": ["a", "b", "c"], "image_size": [8, 8]}
    fusion = {"join": "gated", "pooling": "attention", "width": 8, "hidden_layers": [8]}
    document = {
        "name": "many",
        "data": {"tabular": table},
        "model": {"architecture": {"stages": [1], "width": 4}, "fusion": fusion},
        "training": {"epochs": 1, "batch_size": 8, "member_loop": "loop"},
        "precision": "float32",
        "split": {"folds": 2},
    }
    with roughly():
        result = fit(config_from_dict(document, "test"), runs_dir=tmp_path / "runs", registry=None)
    asked = {"a": [None, str(tmp_path / "0-0.png")], "b": [None, None], "sign": ["up", "down"]}
    found = load_predictor(result.bundle).predict(asked)
    assert np.isfinite(found.prediction).all()
    assert found.uncertainty is not None
    assert result.report["modalities"]["metric"] == "rmse"


@pytest.mark.parametrize("name", ["houses", "emoji"])
def test_the_configs_of_real_data_load_and_name_columns_that_are_there(name: str) -> None:
    config = load_config(REPOSITORY / f"configs/{name}.yaml")
    table = config.data.tabular
    assert table is not None
    assert table.images is not None
    path = SHARED / name / f"{name}.csv"
    if not path.exists():
        pytest.skip(f"{path} is not here: the shared data sets are no part of the repository")
    assert (REPOSITORY / table.path).resolve() == path.resolve()
    with path.open() as file:
        assert {*table.images.columns, table.target_column, *table.ignore_columns} <= set(next(csv.reader(file)))


def test_the_surface_for_notebooks_takes_rows_of_both(trained: Trained) -> None:
    found = mmjax.load_model(str(trained.result.bundle)).predict([{"picture": None, "weight": 1.0, "colour": "red"}])
    assert found.prediction[0] in ("n", "y")
