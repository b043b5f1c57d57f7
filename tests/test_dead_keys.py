"""No key of the config is dead: each, changed once, changes what is refused, read, dealt, compiled, told or written.

`KEYS` declares what a change of each key is seen in, and the other keys that it takes for that; a new key without an
entry fails. Where a key can do nothing it must be refused: `IDLE`.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from msgspec import inspect

from mmjax.artifact.bundle import load_bundle
from mmjax.backend import configure
from mmjax.config import Config
from mmjax.config_load import load_config
from mmjax.data.audit import refuse
from mmjax.data.decode import encode_png
from mmjax.data.pipeline import epoch_batches, take
from mmjax.data.prepare import Prepared, prepare
from mmjax.errors import ConfigError, MmjaxError
from mmjax.parts import build_parts
from mmjax.recipe import resolve
from mmjax.schema import schema_to_json
from mmjax.train import fit
from mmjax.training.event_types import Checkpointed, EpochEnded, Started, Stopped
from mmjax.training.events import train_events
from mmjax.training.setup import Setup, set_up
from mmjax.training.state import eval_variables
from mmjax.training.steps import empty_totals, make_train_chunk
from tests.doors import write_csv

Settings = Mapping[str, Any]
"""Dotted key to value; the value None takes a key away."""

ROWS = 60
TABLE: Settings = {
    "name": "dead",
    "data.tabular.path": "table.csv",
    "data.tabular.target_column": "kind",
    "model.name": "mlp",
    "model.architecture.hidden_layers": [4],
    "model.architecture.dropout": 0.0,
    "training.epochs": 2,
    "training.batch_size": 10,
    "training.schedule": "constant",
    "evaluation.baselines": "none",
}
F32: Settings = {"precision": "float32"}
"""Programs in bfloat16 are compiled anew each time."""
AIR: Settings = {**F32, "name": "dead", "data.image.path": "images", "model.name": "airbench_s", "training.epochs": 1}
IMAGES: Settings = {
    **F32,
    "name": "dead",
    "data.image.path": "images",
    "model.architecture.stages": [1],
    "model.architecture.width": 4,
    "training.epochs": 1,
    "training.batch_size": 4,
}
LISTED: Settings = {**IMAGES, "data.image.path": "images.csv"}
COPIES: Settings = {**TABLE, "data.tabular.path": "copies.csv", "data.tabular.id_column": "id"}
LISTING = "data.tabular.images"
MIXED: Settings = {
    **F32,
    "name": "dead",
    "data.tabular.path": "mixed.csv",
    "data.tabular.target_column": "label",
    f"{LISTING}.columns": ["image"],
    "model.architecture.stages": [1],
    "model.architecture.width": 4,
    "model.fusion.width": 4,
    "model.fusion.hidden_layers": [4],
    "training.epochs": 1,
    "training.batch_size": 4,
}
PAIRS: Settings = {**MIXED, f"{LISTING}.columns": ["image", "negative"]}
ODD: Settings = {**TABLE, "data.tabular.path": "odd.csv", "split.strategy": "column", "split.column": "part"}
PRICED: Settings = {"data.tabular.target_column": "price"}
RULED: Settings = {**TABLE, "data.tabular.schema": "tight.json"}
SHARES = ("train", "validation", "test")


class Key(NamedTuple):
    """One way to see that a key does something."""

    value: Any
    seen: str
    """The observation that differs: a name in `OBSERVED`."""
    base: Settings = TABLE
    also: Settings = MappingProxyType({})
    """Changed with it, as shares must add up to 1."""
    says: str = ""
    """With `refusal`: what exactly one of the two is refused with."""


STILL = {**TABLE, "training.epochs": 5, "training.learning_rate": 1e-9}
STOPPING = {**STILL, "training.early_stopping.patience": 1}
SAVING = {
    **TABLE,
    "training.epochs": 4,
    "training.checkpoint.every_epochs": 1,
    "training.early_stopping.monitor": "val_accuracy",
    "training.learning_rate": 1e-9,
}
SCHEDULED = {**TABLE, "training.learning_rate": 0.01}
AUGMENTED = "data.image.augmentation"
PREPARED = "data.tabular.preprocessing"
REALMLP = {**TABLE, "model.name": "realmlp"}
B0 = {"name": "dead", "data.image.path": "images", "model.name": "efficientnet_b0"}
MEAN = {"data.image.channel_mean": [0.5, 0.5, 0.5], "data.image.channel_std": [0.5, 0.5, 0.5]}
MIXED_MEAN = {f"{LISTING}.channel_mean": [0.5, 0.5, 0.5], f"{LISTING}.channel_std": [0.5, 0.5, 0.5]}
STREAMED = {**TABLE, "data.loading": "streamed"}


def shares(kind: str, part: str) -> tuple[tuple[str, Key], ...]:
    """The key of one share, which another one makes room for."""
    other = "test" if part != "test" else "train"
    now = {"train": 0.7, "validation": 0.1, "test": 0.2}
    base = TABLE if kind == "tabular" else IMAGES
    moved = Key(now[part] + 0.1, "split", base, {f"data.{kind}.{other}_split": round(now[other] - 0.1, 6)})
    return ((f"data.{kind}.{part}_split", moved),)


KEYS: tuple[tuple[str, Key], ...] = (
    ("name", Key("other", "run")),
    ("seed", Key(1, "split")),
    ("device", Key("gpu", "refusal", says="device: expected a GPU, found only cpu")),
    ("precision", Key("bfloat16", "program")),
    ("threads", Key(1000, "run")),
    ("golden_rows", Key(3, "golden")),
    ("split.folds", Key(3, "split")),
    ("budget", Key("1s", "run")),
    ("evaluation.baselines", Key("none", "judged", {**TABLE, "evaluation.baselines": None})),
    ("evaluation.answer_rows", Key(5, "judged")),
    ("data.tabular.path", Key("odd.csv", "rows")),
    ("data.tabular.target_column", Key("colour", "schema")),
    ("data.tabular.schema", Key("wide.json", "schema")),
    ("data.tabular.task", Key("regression", "schema", {**TABLE, "data.tabular.target_column": "grade"})),
    ("data.tabular.positive_class", Key("no", "schema", {**TABLE, "data.tabular.target_column": "open"})),
    *(share for part in SHARES for share in shares("tabular", part)),
    (f"{PREPARED}.normalize", Key(False, "program")),
    (f"{PREPARED}.scaler", Key("standard", "program")),
    (f"{PREPARED}.numeric_bins", Key(8, "program")),
    (f"{PREPARED}.handle_missing", Key("mean", "fitted")),
    (f"{PREPARED}.fill_value", Key(7.0, "fitted", {**TABLE, f"{PREPARED}.handle_missing": "constant"})),
    (f"{PREPARED}.categorical_encoding", Key("onehot", "program")),
    (f"{PREPARED}.onehot_categories", Key(2, "program", REALMLP)),
    ("data.tabular.inference.identifier_unique_ratio", Key(0.5, "schema")),
    ("data.tabular.inference.text_mean_words", Key(1.5, "schema")),
    ("data.tabular.inference.max_categories", Key(4, "schema")),
    ("data.tabular.inference.max_integer_classes", Key(2, "schema", {**TABLE, "data.tabular.target_column": "grade"})),
    ("data.tabular.id_column", Key("id", "names")),
    ("data.tabular.ignore_columns", Key(["size"], "schema")),
    ("data.tabular.weight_column", Key("weight", "rows")),
    ("data.tabular.missing_markers", Key(["-"], "schema")),
    ("data.tabular.delimiter", Key(";", "refusal", says="expected names separated by ';'")),
    ("data.tabular.on_invalid", Key("drop", "refusal", RULED, says="column 'size': expected a number <= 50")),
    ("data.tabular.on_invalid", Key("report", "refusal", RULED, says="column 'size': expected a number <= 50")),
    ("data.tabular.on_invalid", Key("drop", "refusal", {**MIXED, f"{LISTING}.folder": "broken"}, says="readable")),
    (f"{LISTING}.columns", Key(["negative"], "rows", MIXED)),
    (f"{LISTING}.folder", Key("shifted", "rows", MIXED)),
    (f"{LISTING}.image_size", Key([16, 16], "rows", MIXED)),
    (f"{LISTING}.resize", Key("stretch", "rows", {**MIXED, f"{LISTING}.image_size": [8, 8]})),
    (f"{LISTING}.filter", Key("box", "rows", {**MIXED, f"{LISTING}.image_size": [8, 8]})),
    (f"{LISTING}.crop_share", Key(0.5, "rows", MIXED)),
    (f"{LISTING}.channel_mean", Key([0.1, 0.2, 0.3], "fitted", {**MIXED, **MIXED_MEAN})),
    (f"{LISTING}.channel_std", Key([0.1, 0.2, 0.3], "fitted", {**MIXED, **MIXED_MEAN})),
    (f"{LISTING}.augmentation.horizontal_flip", Key(False, "program", MIXED)),
    (f"{LISTING}.augmentation.rotation_range", Key(20, "program", MIXED)),
    (f"{LISTING}.augmentation.vertical_flip", Key(True, "program", MIXED)),
    (f"{LISTING}.augmentation.random_resized_crop", Key([0.3, 1.0], "program", MIXED)),
    (
        f"{LISTING}.augmentation.crop_ratio",
        Key([0.5, 2.0], "program", {**MIXED, f"{LISTING}.augmentation.random_resized_crop": [0.3, 1.0]}),
    ),
    (f"{LISTING}.augmentation.trivial_augment", Key(True, "program", MIXED)),
    (f"{LISTING}.augmentation.random_erasing", Key(0.5, "program", MIXED)),
    (f"{LISTING}.augmentation.shift", Key(0.5, "program", MIXED)),
    (f"{LISTING}.augmentation.color", Key(0.5, "program", MIXED)),
    (f"{LISTING}.augmentation.normalize", Key(False, "program", MIXED)),
    ("model.fusion.join", Key("gated", "program", MIXED)),
    ("model.fusion.pooling", Key("attention", "program", PAIRS)),
    ("model.fusion.width", Key(6, "program", MIXED)),
    ("model.fusion.hidden_layers", Key([5], "program", MIXED)),
    ("model.fusion.dropout", Key(0.5, "program", MIXED)),
    ("model.fusion.modality_dropout", Key(0.5, "program", MIXED)),
    ("model.fusion.own_heads", Key(["columns"], "program", MIXED)),
    ("data.image.path", Key("others", "rows", IMAGES)),
    ("data.image.image_size", Key([16, 16], "rows", IMAGES)),
    ("data.image.resize", Key("stretch", "rows", {**IMAGES, "data.image.image_size": [8, 8]})),
    ("data.image.filter", Key("box", "rows", {**IMAGES, "data.image.image_size": [8, 8]})),
    ("data.image.crop_share", Key(0.5, "rows", IMAGES)),
    ("data.image.channel_mean", Key([0.1, 0.2, 0.3], "fitted", {**IMAGES, **MEAN})),
    ("data.image.channel_std", Key([0.1, 0.2, 0.3], "fitted", {**IMAGES, **MEAN})),
    ("data.image.task", Key("regression", "schema", {**LISTED, "data.image.target_column": "grade"})),
    ("data.image.positive_class", Key("dark", "schema", IMAGES)),
    ("data.image.image_column", Key("negative", "rows", LISTED)),
    ("data.image.target_column", Key("grade", "schema", LISTED)),
    *(share for part in SHARES for share in shares("image", part)),
    (f"{AUGMENTED}.horizontal_flip", Key(False, "program", IMAGES)),
    (f"{AUGMENTED}.horizontal_flip", Key("alternating", "program", IMAGES)),
    (f"{AUGMENTED}.vertical_flip", Key(True, "program", IMAGES)),
    (f"{AUGMENTED}.random_resized_crop", Key([0.3, 1.0], "program", IMAGES)),
    (f"{AUGMENTED}.crop_ratio", Key([0.5, 2.0], "program", {**IMAGES, f"{AUGMENTED}.random_resized_crop": [0.3, 1.0]})),
    (f"{AUGMENTED}.trivial_augment", Key(True, "program", IMAGES)),
    (f"{AUGMENTED}.random_erasing", Key(0.5, "program", IMAGES)),
    (f"{AUGMENTED}.mixup_alpha", Key(0.2, "program", IMAGES)),
    (f"{AUGMENTED}.cutmix_alpha", Key(1.0, "program", IMAGES)),
    (f"{AUGMENTED}.mix_probability", Key(0.5, "program", {**IMAGES, f"{AUGMENTED}.mixup_alpha": 0.2})),
    ("data.image.train_size", Key([8, 8], "program", {**IMAGES, "data.image.image_size": [16, 16]})),
    (
        "data.image.progressive_resizing",
        Key(True, "program", {**IMAGES, "data.image.image_size": [16, 16], "data.image.train_size": [8, 8]}),
    ),
    (f"{AUGMENTED}.rotation_range", Key(20, "program", IMAGES)),
    (f"{AUGMENTED}.shift", Key(0.5, "program", IMAGES)),
    (f"{AUGMENTED}.color", Key(0.5, "program", IMAGES)),
    (f"{AUGMENTED}.normalize", Key(False, "program", IMAGES)),
    ("data.image.id_column", Key("id", "names", LISTED)),
    ("data.image.ignore_columns", Key(["grade"], "notes", LISTED)),
    ("data.image.weight_column", Key("weight", "rows", LISTED)),
    ("data.image.on_invalid", Key("drop", "refusal", {**IMAGES, "data.image.path": "broken"}, says="cannot be read")),
    ("data.loading", Key("streamed", "loading", {**TABLE, "data.loading": "resident"})),
    ("data.cache.path", Key("elsewhere", "cache", {**STREAMED, "data.cache.path": "cache"})),
    (
        "data.cache.max_gib",
        Key(1e-9, "refusal", STREAMED, {"data.cache.path": "small"}, "data.cache.max_gib: expected at most 1e-09 GiB"),
    ),
    ("split.strategy", Key("random", "split")),
    ("split.column", Key("again", "split", {**TABLE, "split.strategy": "column", "split.column": "part"})),
    *((f"audit.{check}", Key("fail", "findings", COPIES)) for check in ("duplicates", "overlap", "leaks")),
    ("audit.overlap", Key("ignore", "findings", COPIES)),
    ("audit.leaks", Key("fail", "refusal", COPIES, says="audit.leaks: warn")),
    ("audit.conflicts", Key("fail", "findings", {**COPIES, "data.tabular.path": "conflicts.csv"})),
    *((f"audit.{check}", Key("fail", "findings", ODD)) for check in ("columns", "classes", "drift")),
    ("audit.tails", Key("fail", "findings", {**TABLE, "data.tabular.path": "heavy.csv"} | PRICED)),
    ("audit.near_duplicates", Key("fail", "findings", {**IMAGES, "data.image.path": "alike"})),
    ("preset", Key("fast", "program", {**TABLE, "model.name": None, "model.architecture.dropout": None})),
    ("model.type", Key("vision", "refusal", says="model.type")),
    (
        "model.name",
        Key("resnet18", "shapes", {**IMAGES, "model.architecture.stages": None, "model.architecture.width": None}),
    ),
    ("model.pretrained", Key("w.pth", "refusal", B0, says="expected a .safetensors or .npz file, got w.pth")),
    ("model.architecture.stem", Key("large", "shapes", IMAGES)),
    ("model.architecture.members", Key(3, "program", {**TABLE, "model.name": "tabm"})),
    ("model.architecture.input_dim", Key(99, "refusal", says="model.architecture.input_dim: expected")),
    ("model.architecture.hidden_layers", Key([5], "program")),
    ("model.architecture.dropout", Key(0.5, "program")),
    ("model.architecture.dropout", Key(0.5, "program", IMAGES)),
    ("model.architecture.activation", Key("tanh", "program")),
    ("model.architecture.normalization", Key("batch", "program")),
    ("model.architecture.residual", Key(True, "program", {**TABLE, "model.architecture.hidden_layers": [4, 4]})),
    ("model.architecture.embedding_dim", Key(5, "program")),
    ("model.architecture.mirrored", Key(False, "forward", AIR)),
    ("model.architecture.stages", Key([2], "shapes", IMAGES)),
    ("model.architecture.width", Key(6, "shapes", IMAGES)),
    ("model.architecture.width", Key(6, "shapes", AIR)),
    ("training.epochs", Key(3, "program", {**TABLE, "training.schedule": "cosine"})),
    ("training.batch_size", Key(5, "program")),
    ("training.learning_rate", Key(0.5, "program")),
    ("training.optimizer", Key("lion", "program", SCHEDULED)),
    ("training.momentum", Key(0.5, "program", {**SCHEDULED, "training.optimizer": "sgd"})),
    ("training.weight_decay", Key(0.5, "program")),
    ("training.adam_b2", Key(0.9, "program")),
    ("training.decay_schedule", Key("flat_cos", "program")),
    ("training.calibration", Key("temperature", "run")),
    ("training.threshold", Key(0.2, "run", {**TABLE, "data.tabular.target_column": "open"})),
    ("training.coverage", Key(0.5, "run")),
    ("training.abstain_below", Key(0.6, "run")),
    ("training.schedule", Key("cosine", "program")),
    ("training.warmup_fraction", Key(0.5, "program", {**TABLE, "training.schedule": "warmup_cosine"})),
    ("training.step_every", Key(0.5, "program", {**TABLE, "training.schedule": "step"})),
    ("training.step_factor", Key(0.5, "program", {**TABLE, "training.schedule": "step"})),
    ("training.loss", Key("focal", "program")),
    ("training.label_smoothing", Key(0.1, "program")),
    ("training.class_weights", Key("balanced", "program")),
    (
        "training.class_weights[].label",
        Key(
            [{"label": "b", "weight": 2.0}],
            "program",
            {**TABLE, "training.class_weights": [{"label": "a", "weight": 2.0}]},
        ),
    ),
    (
        "training.class_weights[].weight",
        Key(
            [{"label": "a", "weight": 3.0}],
            "program",
            {**TABLE, "training.class_weights": [{"label": "a", "weight": 2.0}]},
        ),
    ),
    ("training.focal_gamma", Key(3.0, "program", {**TABLE, "training.loss": "focal"})),
    (
        "training.huber_delta",
        Key(0.5, "program", {**TABLE, "data.tabular.target_column": "length", "training.loss": "huber"}),
    ),
    ("training.clamp", Key(True, "fitted", {**TABLE, "data.tabular.target_column": "length"})),
    (
        "training.quantiles",
        Key([0.5], "program", {**TABLE, "data.tabular.target_column": "length", "training.loss": "pinball"}),
    ),
    ("training.freeze", Key("trunk", "refusal", IMAGES, says="training.freeze: expected `model.pretrained` with it")),
    ("training.layer_decay", Key(0.5, "program", IMAGES)),
    ("training.gradient_clip_norm", Key(0.5, "program")),
    ("training.accumulate_steps", Key(2, "program")),
    ("training.ema_decay", Key(0.9, "program")),
    ("training.members", Key(2, "run")),
    ("training.seeds", Key([1, 2], "run")),
    ("training.member_loop", Key("map", "run", {**TABLE, "training.members": 2})),
    ("training.early_stopping.enabled", Key(False, "events", {**STILL, "training.epochs": 12})),
    ("training.early_stopping.patience", Key(2, "events", STOPPING)),
    ("training.early_stopping.monitor", Key("train_loss", "events", STOPPING)),
    (
        "training.early_stopping.min_delta",
        Key(10.0, "events", {**STOPPING, "training.learning_rate": 0.01}),
    ),
    ("training.checkpoint.enabled", Key(False, "run")),
    ("training.checkpoint.save_best", Key(False, "run", SAVING)),
    ("training.checkpoint.path", Key("kept", "run")),
    ("training.checkpoint.every_seconds", Key(1e-6, "run")),
    ("training.checkpoint.every_epochs", Key(2, "run", SAVING)),
    ("training.checkpoint.keep", Key(1, "run", SAVING)),
)

NUMBERS = {**TABLE, "data.tabular.ignore_columns": ["colour", "open", "note", "part", "again"]}
IDLE: tuple[tuple[str, Settings, str], ...] = (
    ("data.image.id_column", {**IMAGES, "data.image.id_column": "id"}, "expected a .csv file"),
    ("data.image.ignore_columns", {**IMAGES, "data.image.ignore_columns": ["id"]}, "expected a .csv file"),
    ("data.image.weight_column", {**IMAGES, "data.image.weight_column": "weight"}, "expected a .csv file"),
    (f"{AUGMENTED}.crop_ratio", {**IMAGES, f"{AUGMENTED}.crop_ratio": [0.5, 2.0]}, "expected `random_resized_crop`"),
    (f"{AUGMENTED}.mix_probability", {**IMAGES, f"{AUGMENTED}.mix_probability": 0.5}, "expected `mixup_alpha` or"),
    ("data.image.progressive_resizing", {**IMAGES, "data.image.progressive_resizing": True}, "expected `train_size`"),
    (
        "data.image.train_size",
        {**IMAGES, "data.image.image_size": [8, 8], "data.image.train_size": [8, 8]},
        "expected a smaller size",
    ),
    ("model.architecture.embedding_dim", {**NUMBERS, "model.architecture.embedding_dim": 5}, "got none; remove it"),
    ("model.architecture.activation", {**B0, "model.architecture.activation": "relu"}, "has no such option"),
    ("model.architecture.width", {**B0, "model.architecture.width": 8}, "has no such option"),
    ("data.image.crop_share", {**IMAGES, "data.image.resize": "pad", "data.image.crop_share": 0.5}, "has no effect"),
    (f"{LISTING}.crop_share", {**MIXED, f"{LISTING}.resize": "pad", f"{LISTING}.crop_share": 0.5}, "has no effect"),
    ("training.layer_decay", {**TABLE, "training.layer_decay": 0.5}, "expected data.image or data.tabular.images"),
    ("preset", {**IMAGES, "preset": "fast"}, "expected a table, whose network it chooses"),
    ("preset", {**TABLE, "preset": "fast"}, "expected no `model.name` with"),
    ("training.momentum", {**TABLE, "training.momentum": 0.5}, "has no effect"),
    ("data.cache.path", {**TABLE, "data.loading": "resident", "data.cache.path": "cache"}, "has no effect"),
    (
        "training.checkpoint.keep",
        {**TABLE, "training.checkpoint.enabled": False, "training.checkpoint.keep": 3},
        "has no",
    ),
    ("split.column", {**TABLE, "split.strategy": "random", "split.column": "part"}, "has no effect"),
    ("model.fusion.join", {**TABLE, "model.fusion.join": "gated"}, "expected `data.tabular.images` with it"),
    ("model.fusion.pooling", {**MIXED, "model.fusion.pooling": "mean"}, "expected several columns of images to pool"),
    ("preset", {**MIXED, "preset": "fast"}, "expected a table, whose network it chooses"),
)
"""Keys that nothing would read, and with what they are refused."""


def make_rows() -> list[dict[str, str]]:
    """Rows with every kind of cell; `kind` follows from `colour`, mostly."""
    rng = np.random.default_rng(0)
    return [
        {
            "id": f"r{i}",
            "size": "?" if i % 9 == 8 else "99" if i == 7 else f"{rng.normal():.3f}",
            "colour": ("red", "green", "blue")[i % 3],
            "open": ("yes", "no")[rng.integers(2)],
            "when": f"2024-{1 + i % 12:02d}-{1 + i % 28:02d}",
            "note": f"of {('oak', 'elm', 'ash')[i % 3]} wood",
            "code": f"c{i % (2 * ROWS // 3)}",
            "length": f"{rng.normal():.4f}",
            "grade": str(i % 4),
            "kind": "abc"[i % 3 if i % 7 else 0],
            "weight": str(1 + i % 3),
            "part": ("train", "train", "train", "val", "test")[i % 5],
            "again": ("val", "train", "train", "test", "train")[i % 5],
        }
        for i in range(ROWS)
    ]


def make_tables(folder: Path) -> None:
    """`table.csv`, and copies of it in which the audit finds something."""
    rows = make_rows()
    leaking = [{**row, "leak": row["kind"] * 2} for row in rows]
    changed = [{**row, "kind": "abc"[(i + 1) % 3]} for i, row in enumerate(rows)]
    odd = [{**row, "constant": "1", "length": row["length"] if row["part"] == "train" else "30"} for row in rows]
    odd += [{**odd[1], "id": "odd", "kind": "rare"}]
    prices = np.exp(2 * np.random.default_rng(0).normal(size=3 * ROWS))
    heavy = [{**row, "price": f"{price:.3f}"} for row, price in zip(rows * 3, prices, strict=True)]
    for name, made in (
        ("heavy", heavy),
        ("table", rows),
        ("copies", leaking * 2),
        ("conflicts", rows + changed),
        ("odd", odd),
    ):
        write_csv(folder / f"{name}.csv", tuple(made[0]), [tuple(row.values()) for row in made])


def make_images(folder: Path, *, seed: int = 0, alike: bool = False) -> list[str]:
    """Class folders `dark` and `light` of 16 x 12 PNGs; `alike`: each twice, a shade apart. Returns the paths."""
    rng = np.random.default_rng(seed)
    names = []
    for index, name in enumerate(("dark", "light")):
        (folder / name).mkdir(parents=True)
        for i in range(6):
            pixels = np.kron(rng.integers(0, 100, (4, 3, 3)) + 150 * index, np.ones((4, 4, 1)))
            for copy in range(1 + alike):
                names.append(f"{folder.name}/{name}/{i}{copy}.png")
                (folder / name / f"{i}{copy}.png").write_bytes(encode_png((pixels + copy).astype(np.uint8)))
    return names


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory: pytest.TempPathFactory, rough_programs: None) -> Iterator[None]:
    """A working folder with all the data, and a compile cache, so that equal programs are compiled once."""
    folder = tmp_path_factory.mktemp("dead_keys")
    make_tables(folder)
    for name, most in (("wide", 100), ("tight", 50)):
        (folder / f"{name}.json").write_text(json.dumps({"properties": {"size": {"type": "number", "maximum": most}}}))
    names = make_images(folder / "images")
    make_images(folder / "others", seed=1)
    make_images(folder / "alike", alike=True)
    make_images(folder / "broken")
    (folder / "broken" / "dark" / "00.png").write_bytes(b"no image")
    listed = [
        (name, name.split("/")[1], names[-1 - i], f"i{i}", str(i % 4), f"{1 + i % 2}") for i, name in enumerate(names)
    ]
    write_csv(folder / "images.csv", ("image", "label", "negative", "id", "grade", "weight"), listed)
    mixed = [(name, back, "01"[label == "light"], str(len(name))) for name, label, back, *_ in listed]
    write_csv(folder / "mixed.csv", ("image", "negative", "label", "size"), mixed)
    for name, seed in (("shifted", 2), ("broken", 0)):
        make_images(folder / name / "images", seed=seed)
    (folder / "broken" / "images" / "dark" / "00.png").write_bytes(b"no image")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MMJAX_CACHE_DIR", str(folder / "home"))
        before = {name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir", "jax_default_prng_impl")}
        jax.config.update("jax_compilation_cache_dir", None)
        jax.config.update("jax_default_prng_impl", "rbg")  # in place of threefry, which is slow to lower
        configure()
        yield
        for name, value in before.items():
            jax.config.update(name, value)


def make_config(settings: Settings) -> Config:
    """The config of these settings, with every rule applied, as a file that gives them."""
    content: dict[str, Any] = {}
    for path, value in settings.items():
        *parents, name = path.removesuffix("[].label").removesuffix("[].weight").split(".")
        if value is not None:
            functools.reduce(lambda node, parent: node.setdefault(parent, {}), parents, content)[name] = value
    Path("config.yaml").write_text(json.dumps(content))
    return load_config("config.yaml")


@functools.cache
def prepared_of(config: Config) -> Prepared:
    return prepare(config)


@functools.cache
def resolved_of(config: Config) -> Config:
    split = prepared_of(config).split
    rows = {"train_rows": len(split.train), "validation_rows": len(split.validation)}
    return resolve(config, prepared_of(config).schema, **rows)[0]


@functools.cache
def setup_of(config: Config) -> Setup:
    resolved = resolved_of(config)
    return set_up(resolved, prepared_of(config), build_parts(resolved, prepared_of(config).schema))


@functools.cache
def shapes_of(config: Config) -> Setup:
    """The Setup with zeros for what its programs compute: enough to lower others for its shapes, uncompiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmjax.training.setup.compiled", lambda function, **_: functools.partial(zeros, function))
        resolved, prepared = resolved_of(config), prepared_of(config)
        return set_up(resolved, prepared, build_parts(resolved, prepared.schema), ahead=False)


def zeros(function: Callable[..., Any], *arguments: Any) -> Any:
    """Zeros in place of what the function returns."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, *arguments))


def program(config: Config) -> str:
    """The train step as XLA gets it, in short."""
    setup = shapes_of(config)
    training, task = setup.plan.training, setup.task
    assert isinstance(training.batch_size, int)
    chunk = jax.jit(make_train_chunk(task.learner, seed=setup.plan.seed, loop=setup.plan.loop))
    rows = epoch_batches(setup.plan.seed, 1, len(task.rows), training.batch_size)
    text = chunk.lower(setup.state, empty_totals(), take(task.data, task.rows), *task.fitted, rows, 0, 1).as_text()
    return hashlib.sha256(text.encode()).hexdigest()


def forward(config: Config) -> str:
    """The forward pass of answers as XLA gets it, in short."""
    setup, prepared = shapes_of(config), prepared_of(config)
    parts = build_parts(resolved_of(config), prepared.schema)
    batch = take({name: values for name, values in prepared.batch.items() if name != "label"}, np.arange(2))
    text = jax.jit(parts.forward).lower(eval_variables(setup.state), *setup.fitted, batch).as_text()
    return hashlib.sha256(text.encode()).hexdigest()


def digest(tree: Any) -> str:
    """sha256 of arrays, their shapes and where they are."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        found.update(f"{path} {array.shape} {array.dtype}".encode())
        found.update("\n".join(map(str, array.ravel())).encode() if array.dtype == object else array.tobytes())
    return found.hexdigest()


def shapes(config: Config) -> str:
    """The weights of the network, without making them."""
    prepared, resolved = prepared_of(config), resolved_of(config)
    model = build_parts(resolved, prepared.schema).model
    first = {name: np.asarray(values[:2], np.float32) for name, values in prepared.batch.items() if name != "label"}
    return str(jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(model.init, jax.random.key(0), first)))


def events(config: Config) -> list[tuple[Any, ...]]:
    """What training tells, without times."""
    setup, told = setup_of(config), []
    for event in train_events(setup.state, setup.task, setup.plan):
        match event:
            case Started():
                told.append(("started", event.monitor))
            case EpochEnded():
                told.append((event.epoch, event.improved))
            case Stopped():
                told.append(("stopped", event.epoch, event.reason))
            case _:
                pass
    return told


RUNS = itertools.count()


def run(config: Config) -> tuple[Any, ...]:
    """A whole run: its name, what it told, its folders, the epochs at which it saved, and the epoch it kept."""
    saved: list[int] = []
    lines: list[str] = []

    def watch(event: Any) -> None:
        if isinstance(event, Checkpointed):
            saved.append(event.step)

    runs = Path(f"runs{next(RUNS)}")
    done = fit(config, runs_dir=runs, registry=None, resume="never", callbacks=(watch,), tell=lines.append)
    inside = sorted(str(path.relative_to(done.run_dir)) for path in done.run_dir.glob("checkpoints/*/*"))
    told = [line.replace(str(done.run_dir), "RUN") for line in lines]
    return done.run_dir.parent.name, told, inside, saved, done.report["training"]["best_epoch"]


def judged(config: Config) -> tuple[Any, Any]:
    """The baselines of a whole run, and how many answers to test rows its bundle keeps."""
    done = fit(config, runs_dir=Path(f"runs{next(RUNS)}"), registry=None, resume="never")
    answers, baselines = load_bundle(done.bundle).contents.answers, done.report["baselines"]
    return baselines and [one["name"] for one in baselines["baselines"]], answers and len(answers.row)


def refusal(config: Config) -> str:
    """What the config is refused with before training, or an empty string."""
    try:
        configure(device=config.device)
        refuse(prepared_of(config).findings)
        build_parts(resolved_of(config), prepared_of(config).schema)
    except MmjaxError as error:
        return str(error)
    return ""


def cache(config: Config) -> list[str]:
    """The folders that hold a cache of the data."""
    assert prepared_of(config).streamed
    return sorted(name for name in ("cache", "elsewhere") if any(Path(name).glob("*")))


OBSERVED: dict[str, Callable[[Config], Any]] = {
    "refusal": refusal,
    "schema": lambda config: schema_to_json(prepared_of(config).schema),
    "rows": lambda config: digest(prepared_of(config).batch),
    "names": lambda config: prepared_of(config).names.tolist(),
    "golden": lambda config: digest(prepared_of(config).golden),
    "split": lambda config: digest(tuple(prepared_of(config).split)[:3]),
    "notes": lambda config: prepared_of(config).notes,
    "findings": lambda config: prepared_of(config).findings,
    "loading": lambda config: prepared_of(config).streamed,
    "cache": cache,
    "shapes": shapes,
    "fitted": lambda config: digest(shapes_of(config).fitted),
    "program": program,
    "forward": forward,
    "events": events,
    "run": run,
    "judged": judged,
}


@functools.cache
def observed(config: Config, seen: str) -> Any:
    return OBSERVED[seen](config)


def keys_of(kind: inspect.Type, path: str = "") -> Iterator[str]:
    """Every key below `path`: the leaves of the structs, `[]` for the items of a list of structs."""
    match kind:
        case inspect.Metadata():
            yield from keys_of(kind.type, path)
        case inspect.StructType():
            for field in kind.fields:
                yield from keys_of(field.type, f"{path}.{field.name}" if path else field.name)
        case inspect.UnionType() if any(isinstance(each, inspect.StructType) for each in kind.types):
            yield from (key for each in kind.types for key in keys_of(each, path) if key != path)
        case inspect.UnionType():
            yield path
            yield from (key for each in kind.types for key in keys_of(each, path) if "[]" in key.removeprefix(path))
        case inspect.VarTupleType():
            yield path
            yield from (key for key in keys_of(kind.item_type, f"{path}[]") if key != f"{path}[]")
        case _:
            yield path


def test_every_key_has_an_entry() -> None:
    keys = list(keys_of(inspect.type_info(Config)))
    assert len(keys) == len(set(keys))
    assert {"name", "data.cache.max_gib", "training.class_weights[].weight"} < set(keys)
    assert sorted(set(keys) - {path for path, _ in KEYS}) == [], "say in KEYS what these keys do"
    assert sorted({path for path, _ in KEYS} - set(keys)) == [], "these keys are no more"


@pytest.mark.parametrize(("path", "key"), KEYS, ids=[f"{path}-{key.seen}-{key.value}" for path, key in KEYS])
def test_a_changed_key_changes_something(path: str, key: Key) -> None:
    before, after = key.base, {**key.base, **key.also, path: key.value}
    if key.seen == "refusal":
        told = [refused(settings) for settings in (before, after)]
        assert sum(key.says in each for each in told) == 1, told
        assert key.says
    else:
        was, now = (observed(make_config(settings), key.seen) for settings in (before, after))
        assert was != now, f"{path}: {key.value!r} is seen in no {key.seen}"


@pytest.mark.parametrize(("path", "settings", "says"), IDLE, ids=[path for path, _, _ in IDLE])
def test_a_key_that_would_do_nothing_is_refused(path: str, settings: Settings, says: str) -> None:
    told = refused(settings)
    assert path in told
    assert says in told
    assert refused({**settings, path: None}) == ""


def refused(settings: Settings) -> str:
    """What the settings are refused with, as a config or by the data; or an empty string."""
    try:
        return observed(make_config(settings), "refusal")
    except ConfigError as error:
        return str(error)


def test_what_is_not_as_asked_is_told_and_logged() -> None:
    _, lines, *_ = observed(make_config({**TABLE, "threads": 1000}), "run")
    (line,) = [line for line in lines if "1000" in line]
    assert line.startswith("threads: 1000 was asked for, but this process already runs with ")
    logs = [path.read_text() for path in Path().glob("runs*/dead/*/log.jsonl")]
    assert sum(json.dumps(line) in log for log in logs) == 1


@pytest.mark.parametrize("seen", [name for name in OBSERVED if name not in ("refusal", "loading", "cache")])
def test_the_same_config_is_seen_the_same(seen: str) -> None:
    config = make_config(next(key.base for _, key in KEYS if key.seen == seen))
    was = observed(config, seen)
    for cached in (prepared_of, resolved_of, setup_of, shapes_of):
        cached.cache_clear()
    assert OBSERVED[seen](config) == was
