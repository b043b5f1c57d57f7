"""Check: what a config would do, without training and without leaving anything behind."""

import io
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL.PngImagePlugin import PngImageFile

from mmjax.check import _captions, check, command
from mmjax.config import Config
from mmjax.config_load import config_from_dict, config_to_yaml, load_config
from mmjax.drill import _shortened
from tests.doors import Ended, door, table_config, write_images, write_table

pytestmark = pytest.mark.usefixtures("rough_programs")

TABLE = """\
data:
  tabular:
    path: table.csv
    target_column: kind
    id_column: id
model:
  {name: mlp, architecture: {hidden_layers: [4]}}
training: {epochs: 2, batch_size: 16}
"""
IMAGES = """\
data: {image: {path: shades, augmentation: {horizontal_flip: alternating, cutmix_alpha: 1.0}}}
model: {architecture: {stages: [1], width: 4}}
training: {epochs: 3, batch_size: 5}
precision: float32
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a table and its config."""
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "table.csv")
    (tmp_path / "table.yaml").write_text(TABLE)
    return tmp_path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def checked(capsys, *argv: str | Path) -> Ended:
    ended = door(capsys, command, "--config", *argv)
    assert ended.code == 0, ended.err
    return ended


def test_the_cost_of_a_step_does_not_hang_on_the_precision(tmp_path: Path) -> None:
    write_images(tmp_path / "shades")
    content = {
        "name": "cost",
        "data": {"image": {"path": str(tmp_path / "shades")}},
        "model": {"architecture": {"stages": [1], "width": 8}},
        "training": {"epochs": 1, "batch_size": 8},
    }
    f32, bf16 = (
        check(config_from_dict(content | {"precision": precision}, "test")).flops_per_step
        for precision in ("float32", "bfloat16")
    )
    assert f32 > 1e6
    assert bf16 == pytest.approx(f32, rel=0.05)


def test_of_streamed_rows_a_window_is_on_the_device_not_all(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(home / "shades", each=20)
    image = {"path": "shades", "image_size": [32, 32]}
    model = {"architecture": {"stages": [1], "width": 4}}
    memory = {}
    for loading in ("resident", "streamed"):
        data = {"image": image, "loading": loading} | ({"cache": {"path": "cache"}} if loading == "streamed" else {})
        content = {"name": "memory", "data": data, "model": model, "training": {"epochs": 1, "batch_size": 4}}
        content |= {"precision": "float32"}
        monkeypatch.setattr("mmjax.data.stream.WINDOW_BYTES", 2 * 4 * 32 * 32 * 3 + 100)
        found = check(config_from_dict(content, "test"))
        memory[loading] = found.memory_bytes
        train = len(found.prepared.split.train)
    spared = (train // 4 * 4 - 2 * 4) * 32 * 32 * 3
    assert spared > 50_000
    assert memory["resident"] - memory["streamed"] == pytest.approx(spared, rel=0.05)


def test_what_a_table_would_take(home: Path, capsys) -> None:
    before = names(home)
    found = checked(capsys, "table.yaml", "--json").document
    assert found["rows"] == {"train": 56, "validation": 8, "test": 16}
    counts = found["class_counts"]
    assert set(counts) == {"a", "b", "c"}
    for split, rows in found["rows"].items():
        assert sum(counts[name][split] for name in counts) == rows
    for key in ("parameters", "flops_per_step", "memory_bytes", "compile_seconds", "step_seconds"):
        assert found[key] > 0, key
    assert found["estimated_seconds"] >= found["compile_seconds"] + 6 * found["step_seconds"]
    assert {name: column["kind"] for name, column in found["columns"].items()}["when"] == "datetime"
    assert all(decision["why"] for decision in found["decisions"])
    assert "split: stratified, as the target is one of classes" in found["notes"]
    assert found["origins"] is None
    assert names(home) == before


def test_the_origin_of_every_value(home: Path, capsys) -> None:
    ended = checked(capsys, "table.yaml", "--show-origin", "--set", "seed=3")
    lines = {line.split()[0]: line.split()[1:] for line in reversed(ended.out.splitlines()) if line.strip()}
    assert lines["data.tabular.path"] == ["table.csv", "table.yaml:3"]
    assert lines["seed"] == ["3", "--set"]
    assert lines["data.tabular.train_split"] == ["0.7", "default"]
    assert lines["training.optimizer"] == ["(recipe)", "default"]
    assert lines["training.batch_size"] == ["16", "table.yaml:8"]
    assert lines["class"] == ["train", "validation", "test"]
    origins = checked(capsys, "table.yaml", "--show-origin", "--json").document["origins"]
    assert origins["training.epochs"] == "table.yaml:8"


def test_a_table_has_no_batch_to_show(home: Path, capsys) -> None:
    ended = door(capsys, command, "--config", "table.yaml", "--show-batch", "b.png", "--json")
    assert ended.code == 2
    assert ended.document["error"] == {
        "type": "config",
        "message": "--show-batch: expected a config with images, got a table; leave it out",
        "problems": ["--show-batch: expected a config with images, got a table; leave it out"],
    }
    assert not (home / "b.png").exists()


def test_what_images_would_take_and_what_the_net_would_see(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "shades")
    (tmp_path / "shades.yaml").write_text(IMAGES)
    ended = checked(capsys, "shades.yaml", "--show-batch", "batch.png", "--json")
    found = ended.document
    rows = found["rows"]["train"]
    assert found["class_counts"]["dark"]["train"] + found["class_counts"]["light"]["train"] == rows
    assert found["flops_per_step"] > 0
    assert names(tmp_path) == {"shades", "shades.yaml", "batch.png"}
    assert f"{rows} images in batch.png" in ended.err
    data = (tmp_path / "batch.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    sheet = np.asarray(PngImageFile(io.BytesIO(data)).convert("RGB"))
    cell_height, cell_width = 8 * 12 + 24, 8 * 12 + 8
    tiles_down, tiles_across = sheet.shape[0] // cell_height, sheet.shape[1] // cell_width
    assert sheet.shape == (tiles_down * cell_height, 8 * cell_width, 3)
    cells = sheet.reshape(tiles_down, cell_height, tiles_across, cell_width, 3).swapaxes(1, 2)
    drawn = (cells != 255).any(axis=(2, 3, 4))
    assert drawn.sum() == rows
    ended = door(capsys, command, "--config", "shades.yaml", "--show-batch", "no/b.png")
    assert (ended.code, ended.out) == (2, "")
    assert "--show-batch no/b.png: expected a file in a folder that is there; name another" in ended.err


def test_mixed_images_are_captioned_with_both_classes() -> None:
    batch = {"label": np.array([1, 0]), "mixed_label": np.array([0, 0]), "mixed_share": np.array([0.3, 0.0])}
    assert _captions(batch, ("dark", "light")) == ["light + 30% dark", "dark"]
    assert _captions({"label": np.array([1, 0])}, ("dark", "light")) == ["light", "dark"]
    assert _captions({"label": np.array([[1.5], [2.0]])}, ()) == ["1.5", "2"]


def test_what_training_would_refuse(home: Path, capsys) -> None:
    ended = door(capsys, command, "--config", "table.yaml", "--set", "training.batch_size=57", "--json")
    assert ended.code == 2
    assert ended.document["error"]["problems"] == [
        "--set training.batch_size: expected at most 56, the number of training rows, got 57; "
        "lower it, or remove it and it is chosen"
    ]
    assert door(capsys, command, "--config", "table.yaml", "--set", "training.epoch=5").code == 2
    lost = door(capsys, command, "--config", "table.yaml", "--set", "data.tabular.path=no.csv", "--json")
    assert (lost.code, lost.document["error"]["message"]) == (3, "no.csv: no such file")


def test_the_estimate_counts_every_epoch(home: Path) -> None:
    found = check(table_config(Path("table.csv")))
    assert found.steps == 2 * (56 // 16)
    assert found.estimated_seconds == pytest.approx(
        found.compile_seconds + found.step_seconds * (found.steps + 2 * 8 / 16 / 3)
    )


def test_a_drill_leaves_nothing_to_the_clock(tmp_path: Path) -> None:
    """Runs that measure for themselves what to cut, or how to compute members, need not end in the same bits."""
    content = {
        "name": "d",
        "budget": "9s",
        "data": {"tabular": {"path": str(tmp_path / "t.csv"), "target_column": "y"}},
    }
    single, several = (config_from_dict(content | more, "test") for more in ({}, {"split": {"folds": 3}}))
    short = _shortened(several, 3)
    assert (short.budget, short.training.member_loop, short.training.epochs) == (None, "map", 3)
    assert _shortened(single, 3).training.member_loop is msgspec.UNSET
    assert load_config(_written(tmp_path, short)).training.member_loop == "map"


def _written(folder: Path, config: Config) -> Path:
    (folder / "drill.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    return folder / "drill.yaml"
