"""kill -9 at random moments: the same command goes on, and ends in the very bits of a run that was left alone."""

import os
from pathlib import Path
from typing import Any

import pytest

from mmjax.config import Config
from mmjax.config_load import config_from_dict
from mmjax.drill import resume_drill
from tests.conftest import REPOSITORY
from tests.doors import write_images, write_table


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a folder where the processes share what they compile."""
    folder = tmp_path_factory.mktemp("kills")
    write_table(folder / "table.csv", rows=200)
    write_images(folder / "images", each=20)
    return folder


@pytest.fixture(autouse=True)
def _surroundings(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(home / "compiled"))
        monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def table_of(home: Path) -> dict[str, Any]:
    return {"tabular": {"path": str(home / "table.csv"), "target_column": "kind", "id_column": "id"}}


def images_of(home: Path) -> dict[str, Any]:
    augmentation = {"rotation_range": 20, "shift": 0.1, "color": 0.2}
    return {"image": {"path": str(home / "images"), "augmentation": augmentation}}


def config_of(name: str, home: Path) -> Config:
    """One of the four configs that are killed."""
    mlp, resnet = {"name": "mlp", "architecture": {"hidden_layers": [8]}}, {"architecture": {"stages": [1], "width": 4}}
    tabm = {"name": "tabm", "architecture": {"hidden_layers": [8], "members": 3}}
    cache = {"loading": "streamed", "cache": {"path": str(home / "cache")}}
    stopping = {"early_stopping": {"patience": 2}}
    data, model, training = {
        "table": (table_of(home), mlp, stopping),
        "image": (images_of(home), resnet, {}),
        "streamed": (images_of(home) | cache, resnet, {"ema_decay": 0.9}),
        "averaged": (table_of(home), tabm, {"ema_decay": 0.9, "accumulate_steps": 3}),
    }[name]
    content = {"name": name, "data": data, "model": model, "training": {"batch_size": 8, "epochs": 4} | training}
    # In float32: each process would compile programs in bfloat16 anew
    content |= {"evaluation": {"baselines": "none"}, "precision": "float32"}
    return config_from_dict(content, "test")


def assert_unharmed(config: Config, *, kills: int, epochs: int) -> None:
    """Kill so often; every disturbed run ends in the bits of the undisturbed one."""
    told: list[str] = []
    drill = resume_drill(config, kills=kills, epochs=epochs, tell=told.append)
    assert drill.differences == (), told  # they tell the seed
    assert drill.kills == kills
    assert drill.runs >= 1


NAMES = ("table", "image", "streamed", "averaged")
BRIEFLY = ("streamed", "averaged")
"""What two kills are enough for; the laws of test_resume.py hold for all."""


@pytest.mark.parametrize("name", BRIEFLY)
def test_two_kills(home: Path, name: str) -> None:
    assert_unharmed(config_of(name, home), kills=2, epochs=2)


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_twenty_five_kills(home: Path, name: str) -> None:
    assert_unharmed(config_of(name, home), kills=25, epochs=12)
