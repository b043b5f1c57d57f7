"""The recipe: what the config leaves open is decided and said, what it says wins, and nothing depends on the rest."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec import UNSET

from mmjax.config import Config
from mmjax.config_load import config_from_dict, load_config
from mmjax.errors import ConfigError
from mmjax.models.architecture import ARCHITECTURE_DEFAULTS
from mmjax.recipe import resolve
from mmjax.schema import Column, ImageSpec, Schema, Target
from mmjax.train import fit
from tests.doors import table_config, write_table

CLASSES = Target(column="y", task="classification", classes=("a", "b"), reason="text")
NUMBER = Target(column="y", task="regression", reason="numbers")
COLUMNS = (
    Column(name="x", kind="numeric"),
    Column(name="c", kind="categorical", vocabulary=("k", "m")),
)
SCHEMAS = {
    "classes": Schema(target=CLASSES, columns=COLUMNS),
    "number": Schema(target=NUMBER, columns=COLUMNS),
    "images": Schema(target=CLASSES, image=ImageSpec(height_px=32, width_px=32)),
    "both": Schema(target=CLASSES, columns=COLUMNS, image=ImageSpec(columns=("a", "b"), height_px=32, width_px=32)),
}
TABLES = ("classes", "number")
"""What is learnt from by networks for tables."""
LEFT_OPEN = {"split.strategy", "split.folds", "training.checkpoint.every_epochs", "training.member_loop"}
"""These follow from the layout of the data, which notes say, from a preset, from the clock, and from a trial."""


def config_for(kind: str, **sections: Any) -> Config:
    table = {"path": "p", "target_column": "y"} | ({"images": {"columns": ["a", "b"]}} if kind == "both" else {})
    data = {"image": {"path": "p"}} if kind == "images" else {"tabular": table}
    return config_from_dict({"name": "n", "data": data, **sections}, "test")


def open_fields(value: object, path: str = "") -> set[str]:
    """Paths of all fields that are UNSET."""
    if value is UNSET:
        return {path}
    if not isinstance(value, msgspec.Struct):
        return set()
    names = value.__struct_fields__
    return set().union(*(open_fields(getattr(value, n), f"{path}.{n}" if path else n) for n in names))


@pytest.mark.parametrize("kind", SCHEMAS)
@pytest.mark.parametrize("train_rows", [5, 900, 20_000, 10**6])
def test_every_open_field_is_decided_with_a_reason(kind: str, train_rows: int) -> None:
    config = config_for(kind)
    resolved, decisions = resolve(config, SCHEMAS[kind], train_rows=train_rows, validation_rows=train_rows // 5)
    unused = {
        f"model.architecture.{field}"
        for field in config.model.architecture.__struct_fields__
        if getattr(ARCHITECTURE_DEFAULTS[str(resolved.model.name)], field) is UNSET
    }
    follow = ("embedding_dim", "activation") if kind in TABLES else ("stem",)
    follow = () if str(resolved.model.name).startswith("airbench") else follow
    unused -= {f"model.architecture.{field}" for field in follow}
    unused |= {"training.label_smoothing"} if kind == "number" else {"training.clamp"}
    unused |= {f"model.fusion.{field}" for field in config.model.fusion.__struct_fields__} if kind != "both" else set()
    whole = kind in TABLES or resolved.model.name == "airbench_s"  # these take all their epochs
    unused |= {"training.layer_decay"} if kind in TABLES else set()
    unused |= {"training.early_stopping.patience"} if whole else set()
    assert open_fields(resolved) == LEFT_OPEN | unused
    assert {decision.key for decision in decisions} == open_fields(config) - open_fields(resolved)
    assert all(decision.why for decision in decisions)
    assert isinstance(resolved.training.batch_size, int)
    assert 1 <= resolved.training.batch_size <= train_rows


@pytest.mark.parametrize("kind", SCHEMAS)
def test_resolving_twice_changes_nothing(kind: str, tmp_path: Path) -> None:
    once, _ = resolve(config_for(kind), SCHEMAS[kind], train_rows=500, validation_rows=70)
    assert resolve(once, SCHEMAS[kind], train_rows=500, validation_rows=70) == (once, ())
    assert resolve(once, SCHEMAS[kind], train_rows=5000, validation_rows=0) == (once, ())


EXPLICIT = {
    "model": {"name": "mlp", "architecture": {"hidden_layers": [3], "dropout": 0.5, "activation": "tanh"}},
    "training": {
        "epochs": 7,
        "batch_size": 3,
        "learning_rate": 0.5,
        "optimizer": "sgd",
        "weight_decay": 0.0,
        "loss": "focal",
        "schedule": "step",
        "early_stopping": {"patience": 2, "monitor": "train_loss"},
    },
}


def test_what_is_written_wins() -> None:
    config = config_for("classes", **EXPLICIT)
    resolved, decisions = resolve(config, SCHEMAS["classes"], train_rows=500, validation_rows=70)
    found, given = msgspec.to_builtins(resolved.training), EXPLICIT["training"]
    assert {key: found[key] for key in given if key != "early_stopping"}.items() <= given.items()
    assert resolved.training.early_stopping.monitor == "train_loss"
    assert (resolved.model.architecture.hidden_layers, resolved.model.architecture.activation) == ((3,), "tanh")
    assert not {decision.key for decision in decisions} & {
        *("training.epochs", "training.loss", "training.early_stopping.patience", "model.architecture.dropout"),
    }


def test_patience_follows_the_epochs_that_are_written() -> None:
    found = [
        resolve(
            config_for("classes", model={"name": "mlp"}, training={"epochs": epochs}),
            SCHEMAS["classes"],
            train_rows=500,
            validation_rows=9,
        )
        for epochs in (8, 400)
    ]
    assert [config.training.early_stopping.patience for config, _ in found] == [10, 100]


def test_a_batch_that_no_row_fills_is_refused() -> None:
    for rows in (16, 17):
        resolve(
            config_for("classes", training={"batch_size": 16}), SCHEMAS["classes"], train_rows=rows, validation_rows=0
        )
    with pytest.raises(
        ConfigError, match=r"^training.batch_size: expected at most 15, the number of training rows, got 16; "
    ):
        resolve(
            config_for("classes", training={"batch_size": 16}), SCHEMAS["classes"], train_rows=15, validation_rows=0
        )


def test_without_validation_rows_nothing_stops_early() -> None:
    resolved, decisions = resolve(config_for("classes"), SCHEMAS["classes"], train_rows=50, validation_rows=0)
    stopping = resolved.training.early_stopping
    assert (stopping.enabled, stopping.patience, stopping.monitor) == (False, UNSET, UNSET)
    whys = {decision.key: decision.why for decision in decisions}
    assert whys["training.early_stopping.enabled"] == "there are no validation rows"
    assert whys["training.calibration"] == "0 validation rows, 100 are needed"
    on_train = config_for("classes", training={"early_stopping": {"enabled": True, "monitor": "train_loss"}})
    resolved, _ = resolve(on_train, SCHEMAS["classes"], train_rows=50, validation_rows=0)
    assert resolved.training.early_stopping.enabled is True
    assert isinstance(resolved.training.early_stopping.patience, int)


def test_all_rows_may_be_trained_on_and_training_may_stop_by_them(tmp_path: Path) -> None:
    config = table_config(
        write_table(tmp_path / "t.csv"), train_split=1.0, validation_split=0.0, test_split=0.0, id_column=None
    )
    stopping = {"monitor": "train_roc_auc", "enabled": True, "patience": 2, "min_delta": 0.5}
    training = {"epochs": 9, "batch_size": 80, "learning_rate": 1e-9, "early_stopping": stopping}
    config = config_from_dict(msgspec.to_builtins(config) | {"training": training}, "test")
    result = fit(config, runs_dir=tmp_path / "runs", registry=tmp_path / "registry")
    assert set(result.metrics) == {"train"}
    assert np.isfinite(result.metrics["train"]["roc_auc"])
    assert result.report["training"]["epochs"] == 3
    reread = load_config(result.run_dir / "resolved.yaml")
    assert resolve(reread, result.predictor.schema, train_rows=80, validation_rows=0)[0].training == reread.training


@pytest.mark.parametrize(("preset", "name"), [("fast", "realmlp_s"), ("default", "realmlp"), ("best", "tabm")])
def test_a_preset_chooses_the_network_of_a_table(preset: str, name: str) -> None:
    config = config_for("classes", preset=preset)
    resolved, decisions = resolve(config, SCHEMAS["classes"], train_rows=900, validation_rows=100)
    assert resolved.model.name == name
    assert "model.name" in {decision.key for decision in decisions}
    named = msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, name="mlp"))
    assert resolve(named, SCHEMAS["classes"], train_rows=900, validation_rows=100)[0].model.name == "mlp"


def test_the_fast_preset_plans_an_eighth_of_the_epochs_of_many_rows_half_of_that() -> None:
    asked = {"fast": config_for("classes", preset="fast"), "named": config_for("classes", model={"name": "realmlp_s"})}
    own = config_for("classes", preset="fast", training={"epochs": 7})
    found = {
        name: resolve(config, SCHEMAS["classes"], train_rows=900, validation_rows=100)[0].training.epochs
        for name, config in {**asked, "own": own}.items()
    }
    assert found == {"fast": 32, "named": 256, "own": 7}
    for rows, epochs in ((8_192, 32), (8_193, 16)):
        many, _ = resolve(asked["fast"], SCHEMAS["classes"], train_rows=rows, validation_rows=100)
        assert many.training.epochs == epochs


@pytest.mark.parametrize("name", ["realmlp", "realmlp_s"])
def test_realmlp_chooses_its_epoch_by_log_loss_and_errors(name: str) -> None:
    for task, monitor in (("classes", "val_selection_loss"), ("number", "val_rmse")):
        config = config_for(task, model={"name": name})
        resolved, _ = resolve(config, SCHEMAS[task], train_rows=900, validation_rows=100)
        assert resolved.training.early_stopping.monitor == monitor


@pytest.mark.parametrize("name", ["mlp", "realmlp", "realmlp_s", "tabm"])
@pytest.mark.parametrize(("loss", "monitor"), [("pinball", "val_loss"), ("mae", "val_mae"), ("mse", "val_rmse")])
def test_a_number_chooses_its_epoch_by_what_is_trained(name: str, loss: str, monitor: str) -> None:
    config = config_for("number", model={"name": name}, training={"loss": loss})
    resolved, _ = resolve(config, SCHEMAS["number"], train_rows=900, validation_rows=100)
    assert resolved.training.early_stopping.monitor == ("val_loss" if name == "mlp" else monitor)


@pytest.mark.parametrize(
    ("rows", "epochs", "batch_size"), [(300, 60, 16), (600, 40, 16), (999, 30, 16), (1_000, 30, 32)]
)
def test_few_images_with_columns_get_about_as_many_steps(rows: int, epochs: int, batch_size: int) -> None:
    training = resolve(config_for("both"), SCHEMAS["both"], train_rows=rows, validation_rows=100)[0].training
    assert (training.epochs, training.batch_size) == (epochs, batch_size)


@pytest.mark.parametrize(
    ("rows", "batch_size"), [(900, 32), (2_800, 64), (4_500, 128), (6_400, 256), (32_000, 512), (108_000, 1024)]
)
def test_tabm_gets_its_constants(rows: int, batch_size: int) -> None:
    """Those of TabM's `example.ipynb`, and AutoGluon's batches by rows, each as it starts."""
    config = config_for("classes", model={"name": "tabm"})
    resolved, _ = resolve(config, SCHEMAS["classes"], train_rows=rows, validation_rows=rows // 4)
    training, shape = resolved.training, resolved.model.architecture
    assert training.batch_size == batch_size
    assert (training.optimizer, training.learning_rate, training.weight_decay) == ("adamw", 2e-3, 3e-4)
    assert (training.gradient_clip_norm, training.schedule) == (1.0, "constant")
    assert (training.early_stopping.enabled, training.early_stopping.patience) == (True, 16)
    assert (shape.members, shape.hidden_layers, shape.dropout, shape.activation) == (32, (512, 512), 0.1, "relu")
    assert resolved.data.tabular is not None
    assert resolved.data.tabular.preprocessing.numeric_bins == 48
