"""A number from images, all the way: a CSV beside image files is trained, beats the mean, is bundled and served."""

import json
from pathlib import Path

import numpy as np
import pytest

from mmjax.artifact.models import load_model
from mmjax.config_load import config_from_dict
from mmjax.data.decode import encode_png
from mmjax.evaluate import evaluate_model
from mmjax.predict import predict_file
from mmjax.train import FitResult, fit
from tests.chromium import chromium
from tests.inference_server import served
from tests.rough import roughly

SIDE = 12


def line_at(radians: float, rng: np.random.Generator) -> np.ndarray:
    """u8[S, S, 3]: a bright line through the middle at an angle, with noise."""
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    away = np.abs(y * np.cos(radians) - x * np.sin(radians))
    grey = np.clip(220 - 90 * away, 20, 220) + rng.normal(0, 10, (SIDE, SIDE))
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def write_lines(folder: Path, count: int) -> Path:
    """A CSV of images of lines and their angles in degrees, -60 to 60."""
    rng = np.random.default_rng(0)
    (folder / "lines").mkdir()
    degrees = rng.uniform(-60, 60, count)
    for index, angle in enumerate(degrees):
        (folder / "lines" / f"{index}.png").write_bytes(encode_png(line_at(np.deg2rad(angle), rng)))
    rows = [f"lines/{index}.png,{angle:.3f},{1 + index % 2}" for index, angle in enumerate(degrees)]
    path = folder / "angles.csv"
    path.write_text("\n".join(["image,angle,sure", *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FitResult]:
    folder = tmp_path_factory.mktemp("angles")
    data = {
        "path": str(write_lines(folder, 240)),
        "target_column": "angle",
        "weight_column": "sure",
        "augmentation": {"horizontal_flip": False, "mixup_alpha": 0.2},
    }
    content = {
        "name": "angles",
        "data": {"image": data},
        "model": {"architecture": {"stages": [1], "width": 8}},
        "training": {"epochs": 12, "batch_size": 16, "learning_rate": 0.02, "loss": "huber", "coverage": 0.8},
        "precision": "float32",
    }
    config = config_from_dict(content, "test")
    with roughly():
        return folder, fit(config, runs_dir=folder / "runs", registry=folder / "registry")


def test_the_network_is_far_better_than_the_mean(trained: tuple[Path, FitResult]) -> None:
    _, result = trained
    test = result.metrics["test"]
    assert set(test) == {"loss", "rmse", "mae", "r2", "mape"}
    assert test["r2"] > 0.8
    mean = next(each for each in result.report["baselines"]["baselines"] if each["name"] == "mean")
    assert test["rmse"] < 0.5 * mean["metrics"]["rmse"]
    assert result.predictor.schema.target.task == "regression"


def test_the_report_tells_intervals_and_coverage(trained: tuple[Path, FitResult]) -> None:
    _, result = trained
    report = json.loads((result.run_dir / "report.json").read_bytes())
    text = json.dumps(report)
    assert "intervals" in text
    assert "coverage" in text
    assert "rmse" in (result.bundle / "card.md").read_text()


def test_the_bundle_answers_as_training_did(trained: tuple[Path, FitResult]) -> None:
    folder, result = trained
    predictor = load_model("angles", registry=folder / "registry")
    written = predict_file(predictor, folder / "angles.csv", folder / "out.csv")
    assert written.rows == 240
    rows = (folder / "out.csv").read_text().splitlines()
    told = np.array([float(row.split(",")[rows[0].split(",").index("prediction")]) for row in rows[1:]])
    truth = np.loadtxt(folder / "angles.csv", delimiter=",", skiprows=1, usecols=1)
    assert np.corrcoef(told, truth)[0, 1] > 0.9
    assert evaluate_model(result.bundle, folder / "angles.csv").rows == 240


def test_the_server_answers_a_number_with_an_interval(trained: tuple[Path, FitResult]) -> None:
    folder, _ = trained
    predictor = load_model("angles", registry=folder / "registry")
    image = (folder / "lines" / "7.png").read_bytes()
    wanted = predictor.predict({"image": [image]})
    with served(folder / "registry", "angles") as server:
        reply = server.ask("POST", "/predict/image", image, {"Content-Type": "image/png"}).json
        (answer,) = reply["predictions"]
        assert answer == pytest.approx(wanted.prediction[0], abs=1e-2)
        ((low, high),) = reply["intervals"]
        assert low < answer < high
        told = server.ask("GET", "/v2/models/angles").json
        assert [tensor["name"] for tensor in told["inputs"]] == ["image"]
        with chromium() as browser:
            browser.open(f"http://127.0.0.1:{server.port}/")
            browser.until("document.querySelector('#image') !== null")
            browser.choose("#image", folder / "lines" / "7.png")
            browser.until("document.querySelector('#result .answer') !== null")
            shown = browser.run("document.querySelector('#result').innerText").splitlines()
            assert shown[0].lower() == "angle"
            assert float(shown[1]) == pytest.approx(answer, abs=1e-2)
            ends = shown[shown.index("Interval") + 1].split(" to ")
            assert [float(end) for end in ends] == pytest.approx([low, high], abs=1e-2)


def test_what_is_told_of_a_bfloat16_model_is_true_of_the_one_that_answers(tmp_path: Path) -> None:
    header, *rows = write_lines(tmp_path, 96).read_text().splitlines()
    parts = [("train", "train", "val", "test")[index % 4] for index in range(len(rows))]
    lines = [f"{row},{part}" for row, part in zip(rows, parts, strict=True)]
    (tmp_path / "parts.csv").write_text("\n".join([f"{header},part", *lines]) + "\n")
    tests = [line for line, part in zip(lines, parts, strict=True) if part == "test"]
    (tmp_path / "test.csv").write_text("\n".join([f"{header},part", *tests]) + "\n")
    content = {
        "name": "angles",
        "data": {"image": {"path": str(tmp_path / "parts.csv"), "target_column": "angle", "weight_column": "sure"}},
        "split": {"strategy": "column", "column": "part"},
        "model": {"architecture": {"stages": [1], "width": 8}},
        "training": {"epochs": 3, "batch_size": 16, "learning_rate": 0.02, "members": 2, "member_loop": "map"},
        "precision": "bfloat16",
    }
    result = fit(config_from_dict(content, "test"), runs_dir=tmp_path / "runs", registry=None)
    loaded = evaluate_model(result.bundle, tmp_path / "test.csv").metrics
    assert loaded == pytest.approx({name: result.metrics["test"][name] for name in loaded}, rel=1e-5)
