"""Loading configs: what a file says is what the Config holds, and everything wrong is said at once, with its place."""

from pathlib import Path

import msgspec
import pytest
from msgspec import UNSET

from mmjax.config import Config, Data, ImageData, TabularData, Training
from mmjax.config_load import (
    config_from_dict,
    config_to_dict,
    config_to_yaml,
    diff_configs,
    format_origins,
    load_config,
    load_config_with_origins,
)
from mmjax.config_structure import key_paths
from mmjax.errors import ConfigError

TABLE = "data: {tabular: {path: a.csv, target_column: y}}\n"
IMAGES = "data: {image: {path: pictures}}\n"
MIXED = "data: {tabular: {path: a, target_column: y, images: {columns: [p]}}}\n"

EVERY_KEY_OF_THE_ISSUE = """\
data:
  tabular:
    path: data/sample/iris.csv
    schema: iris.schema.json
    target_column: species
    train_split: 0.7
    validation_split: .1
    test_split: 2e-1
    preprocessing: {normalize: TRUE, handle_missing: mean, categorical_encoding: onehot}
    id_column: id
    ignore_columns: [a, "1"]
    weight_column: w
model:
  type: tabular
  name: mlp
  architecture: {input_dim: 4, hidden_layers: [64, 32], dropout: 0, activation: relu}
training:
  epochs: 5
  batch_size: 32
  learning_rate: 1e-3
  optimizer: adam
  loss: cross_entropy
  early_stopping: {enabled: true, patience: 3, monitor: val_accuracy}
  checkpoint: {enabled: true, save_best: false, path: out}
seed: 7
device: cpu
precision: bfloat16
threads: 2
split: {strategy: random}
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that writes a file into the working directory and returns its name."""
    monkeypatch.chdir(tmp_path)

    def file(text: str, name: str = "c.yaml") -> str:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")
        return name

    return file


def problems_of(path: str | Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return list(caught.value.problems)


def test_every_key_of_the_issue_arrives(write) -> None:
    config = load_config(write(EVERY_KEY_OF_THE_ISSUE))
    data, architecture, training = config.data.tabular, config.model.architecture, config.training
    assert data is not None
    assert (data.schema, data.validation_split, data.test_split) == ("iris.schema.json", 0.1, 0.2)
    assert (data.ignore_columns, data.id_column, data.weight_column) == (("a", "1"), "id", "w")
    assert (data.preprocessing.normalize, data.preprocessing.categorical_encoding) == (True, "onehot")
    assert (architecture.input_dim, architecture.hidden_layers, architecture.dropout) == (4, (64, 32), 0.0)
    assert (training.learning_rate, training.early_stopping.monitor) == (1e-3, "val_accuracy")
    assert (training.checkpoint.path, training.checkpoint.save_best) == ("out", False)
    assert (config.seed, config.device, config.precision, config.threads) == (7, "cpu", "bfloat16", 2)
    assert config.split.strategy == "random"
    assert hash(config) == hash(load_config("c.yaml"))


def test_every_image_key_of_the_issue_arrives(write) -> None:
    text = (
        "data: {image: {path: p, image_size: [32, 48],"
        " augmentation: {horizontal_flip: false, rotation_range: 15, normalize: false}}}\n"
        "model: {type: vision, name: resnet18}\n"
    )
    image = load_config(write(text)).data.image
    assert image is not None
    assert image.image_size == (32, 48)
    augmentation = image.augmentation
    assert (augmentation.horizontal_flip, augmentation.rotation_range, augmentation.normalize) == (False, 15, False)


def test_the_smallest_configs_load(write) -> None:
    table = load_config(write(TABLE, "my_table.yaml"))
    assert table == Config(name="my_table", data=Data(tabular=TabularData(path="a.csv", target_column="y")))
    assert load_config(Path(write(IMAGES, "i.yml"))).data == Data(image=ImageData(path="pictures"))


def test_a_loaded_config_agrees_with_msgspec(write) -> None:
    config = load_config(write(EVERY_KEY_OF_THE_ISSUE))
    assert msgspec.convert(config_to_dict(config), Config) == config


STRUCTURE = {
    "unknown key": (
        TABLE + "modle: {}",
        ["c.yaml:2: modle: unknown key; options: name, data, budget, preset, split, audit, model, training, "
         "evaluation, seed, device, precision, threads, golden_rows; did you mean 'model'?"],
    ),
    "unknown key in its own section's words": (
        TABLE + "split: {colum: a}",
        ["c.yaml:2: split.colum: unknown key; options: strategy, column, folds; did you mean 'column'?"],
    ),
    "key of another section": (
        TABLE + "model:\n  dropout: 0.1",
        ["c.yaml:3: model.dropout: unknown key; options: type, name, pretrained, architecture, fusion; did you mean "
         "'model.architecture.dropout' or 'model.fusion.dropout'?"],
    ),
    "key one level too high": (
        "data: {path: a.csv}",
        ["c.yaml:1: data.path: unknown key; options: tabular, image, loading, cache; did you mean 'data.tabular.path' "
         "or 'data.image.path' or 'data.cache.path'?"],
    ),
    "dotted key": (
        TABLE + "split.column: c",
        ["c.yaml:2: 'split.column': unknown key; options: name, data, budget, preset, split, audit, model, training, "
         "evaluation, seed, device, precision, threads, golden_rows; nest it: one section a line, each indented "
         "further"],
    ),
    "merge key": (
        TABLE + "split: {<<: {strategy: random}}",
        ["c.yaml:2: split.'<<': unknown key; options: strategy, column, folds"],
    ),
    "missing required": (
        "data:\n  tabular:\n    path: a.csv",
        ["c.yaml:2: data.tabular.target_column: missing; expected text that is not empty or a list of 2 or more, each "
         "text that is not empty"],
    ),
    "missing data": (
        "seed: 1",
        ["c.yaml:1: data: missing; expected a mapping with tabular, image, loading, cache"],
    ),
    "misspelt required is said once": (
        "data:\n  tabular:\n    path: a.csv\n    target: y",
        ["c.yaml:4: data.tabular.target: unknown key; options: path, target_column, schema, task, positive_class, "
         "train_split, validation_split, test_split, preprocessing, inference, images, id_column, ignore_columns, "
         "weight_column, missing_markers, delimiter, on_invalid; did you mean 'target_column'?"],
    ),
    "text for a whole number": (
        TABLE + "training: {epochs: many, batch_size: '32'}\nseed: 1_000",
        ["c.yaml:2: training.epochs: expected a whole number >= 1, got text 'many'",
         "c.yaml:2: training.batch_size: expected a whole number >= 1, got text '32'; write 32",
         "c.yaml:3: seed: expected a whole number >= 0, got text '1_000'; write 1000"],
    ),
    "fraction for a whole number": (
        TABLE + "training: {epochs: 5.0, batch_size: 2.5}",
        ["c.yaml:2: training.epochs: expected a whole number >= 1, got the number 5.0; write 5",
         "c.yaml:2: training.batch_size: expected a whole number >= 1, got the number 2.5"],
    ),
    "leading zero": (
        TABLE + "seed: 010",
        ["c.yaml:2: seed: expected a whole number >= 0, got text '010'; write 10"],
    ),
    "number for text": (
        "data: {tabular: {path: 5, target_column: true}}",
        ['c.yaml:1: data.tabular.path: expected text that is not empty, got the number 5; quote it: "5"',
         "c.yaml:1: data.tabular.target_column: expected text that is not empty or a list of 2 or more, each text that "
         'is not empty, got true; quote it: "true"'],
    ),
    "boolean for a number": (
        TABLE + "seed: true\ntraining: {learning_rate: false}",
        ["c.yaml:2: seed: expected a whole number >= 0, got true",
         "c.yaml:3: training.learning_rate: expected a number > 0, got false"],
    ),
    "no, on and quotes for a boolean": (
        TABLE + "training: {checkpoint: {enabled: no, save_best: 'true'}, early_stopping: {enabled: On}}",
        ["c.yaml:2: training.checkpoint.enabled: expected true or false, got text 'no'; write false",
         "c.yaml:2: training.checkpoint.save_best: expected true or false, got text 'true'; write true",
         "c.yaml:2: training.early_stopping.enabled: expected true or false, got text 'On'; write true"],
    ),
    "nothing": (
        TABLE + "training:\nseed: ~",
        ["c.yaml:2: training: expected a mapping with epochs, batch_size, learning_rate, optimizer, momentum, "
         "weight_decay, adam_b2, decay_schedule, schedule, warmup_fraction, step_every, step_factor, loss, "
         "label_smoothing, calibration, threshold, coverage, abstain_below, class_weights, "
         "focal_gamma, huber_delta, quantiles, clamp, freeze, layer_decay, gradient_clip_norm, accumulate_steps, "
         "ema_decay, members, "
         "seeds, member_loop, early_stopping, checkpoint, got "
         "nothing; give a value or remove the key",
         "c.yaml:3: seed: expected a whole number >= 0, got nothing; give a value or remove the key"],
    ),
    "out of range": (
        TABLE + "training: {epochs: 0, learning_rate: 0, momentum: 1}\nseed: 2147483648\nthreads: -1\ngolden_rows: 65",
        ["c.yaml:2: training.epochs: expected a whole number >= 1, got the number 0",
         "c.yaml:2: training.learning_rate: expected a number > 0, got the number 0",
         "c.yaml:2: training.momentum: expected a number >= 0 and < 1, got the number 1",
         "c.yaml:3: seed: expected a whole number < 2147483648, got the number 2147483648",
         "c.yaml:4: threads: expected a whole number >= 1, got the number -1",
         "c.yaml:5: golden_rows: expected a whole number >= 1 and <= 64, got the number 65"],
    ),
    "what float32 cannot hold": (
        TABLE + "training: {learning_rate: 1e-50, weight_decay: 1e39, ema_decay: 0.9999999999}\nseed: 1e999",
        ["c.yaml:2: training.learning_rate: expected a number > 0, got the number 1e-50 (0 in float32)",
         "c.yaml:2: training.weight_decay: expected a number that float32 can hold, got the number 1e39",
         "c.yaml:2: training.ema_decay: expected a number > 0 and < 1, got the number 0.9999999999 (1 in float32)",
         "c.yaml:3: seed: expected a whole number >= 0, got the number 1e999"],
    ),
    "not a number": (
        TABLE + "training: {learning_rate: .nan}",
        ["c.yaml:2: training.learning_rate: expected a number > 0, got text '.nan'"],
    ),
    "options listed": (
        TABLE + "device: cuda\ntraining: {optimizer: Adam, loss: 5}\nprecision: true",
        ["c.yaml:2: device: expected one of auto, cpu, gpu, got text 'cuda'",
         "c.yaml:3: training.optimizer: expected one of adam, adamw, lion, muon, sgd, got text 'Adam'; did you mean "
         "'adam'?",
         "c.yaml:3: training.loss: expected one of bce, cross_entropy, focal, huber, mae, mse, pinball, got the number "
         "5",
         "c.yaml:4: precision: expected one of bfloat16, float32, got true"],
    ),
    "lists": (
        TABLE + "model: {architecture: {hidden_layers: 64}}",
        ["c.yaml:2: model.architecture.hidden_layers: expected a list, each a whole number >= 1, got the number 64; "
         "write a list: [64]"],
    ),
    "a list of two, and the smallest of a family": (
        "data: {image: {path: a, image_size: 64}}\nmodel: {name: tf_efficientnet}",
        ["c.yaml:1: data.image.image_size: expected a list of 2, each a whole number >= 8 and <= 4096, got the number "
         "64; write a list: [64, 64]",
         "c.yaml:2: model.name: expected one of airbench, airbench_s, efficientnet_b0, efficientnet_b1, "
         "efficientnet_b2, efficientnet_b3, efficientnet_b4, mlp, realmlp, realmlp_s, resnet, resnet18, resnet18d, "
         "resnet34, resnet34d, resnet50, resnet50d, tabm, tf_efficientnet_b0, tf_efficientnet_b1, tf_efficientnet_b2, "
         "tf_efficientnet_b3, tf_efficientnet_b4, got text 'tf_efficientnet'; did you mean 'tf_efficientnet_b0'?"],
    ),
    "list items": (
        TABLE + "model:\n  architecture:\n    hidden_layers:\n      - 8\n      - 0\n      - x",
        ["c.yaml:6: model.architecture.hidden_layers[1]: expected a whole number >= 1, got the number 0",
         "c.yaml:7: model.architecture.hidden_layers[2]: expected a whole number >= 1, got text 'x'"],
    ),
    "list length": (
        "data:\n  image: {path: p, image_size: [32]}\nmodel:\n  architecture: {stages: [1, 1, 1, 1, 1]}",
        ["c.yaml:2: data.image.image_size: expected a list of 2, each a whole number >= 8 and <= 4096, got a list of 1",
         "c.yaml:4: model.architecture.stages: expected a list of 1 to 4, each a whole number >= 1, got a list of 5"],
    ),
    "mapping for a list, list for a mapping, scalar for a mapping": (
        TABLE + "model: {architecture: {hidden_layers: {a: 1}}}\nsplit: [1]\ntraining: {checkpoint: 5}",
        ["c.yaml:2: model.architecture.hidden_layers: expected a list, each a whole number >= 1, got a mapping",
         "c.yaml:3: split: expected a mapping with strategy, column, folds, got a list of 1",
         "c.yaml:4: training.checkpoint: expected a mapping with enabled, save_best, path, every_seconds, "
         "every_epochs, keep, got the number 5"],
    ),
    "class weights": (
        TABLE + "training:\n  class_weights: {a: 1}",
        ["c.yaml:3: training.class_weights: expected one of balanced, none or a list, each a mapping with label, "
         "weight, got a mapping"],
    ),
    "class weight items": (
        TABLE + "training:\n  class_weights:\n  - {label: 1, weight: 2}\n  - {label: a, wieght: 2}\n  - {label: b}",
        ['c.yaml:4: training.class_weights[0].label: expected text, got the number 1; quote it: "1"',
         "c.yaml:5: training.class_weights[1].wieght: unknown key; options: label, weight; did you mean 'weight'?",
         "c.yaml:6: training.class_weights[2].weight: missing; expected a number >= 0"],
    ),
    "class weights misspelt": (
        TABLE + "training: {class_weights: balance}",
        ["c.yaml:2: training.class_weights: expected one of balanced, none, got text 'balance'; did you mean "
         "'balanced'?"],
    ),
    "name and delimiter": (
        "data: {tabular: {path: a, target_column: y, delimiter: ';;'}}\nname: a b\n",
        ["c.yaml:1: data.tabular.delimiter: expected one ASCII character other than a double quote or a line break, "
         "got text ';;'",
         "c.yaml:2: name: expected at most 100 of A-Z a-z 0-9 . _ -, the first a letter or digit, got text 'a b'"],
    ),
    "name that ends in a line break": (
        TABLE + 'name: "a\\n"',
        ["c.yaml:2: name: expected at most 100 of A-Z a-z 0-9 . _ -, the first a letter or digit, got text 'a\\n'"],
    ),
    "given twice": (TABLE + "seed: 1\nseed: 2", ["c.yaml:3: seed: key given twice, first at c.yaml:2; remove one"]),
    "empty text": (
        "data: {tabular: {path: '', target_column: y}}",
        ["c.yaml:1: data.tabular.path: expected text that is not empty, got text ''"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), STRUCTURE.values(), ids=STRUCTURE.keys())
def test_wrong_shapes(write, text: str, expected: list[str]) -> None:
    assert problems_of(write(text)) == expected


TASK = "data: {tabular: {path: a.csv, target_column: y, task: %s}}\n"
RULES = {
    "no data": ("data: {}", "c.yaml:1: data: expected `tabular` or `image` in it, got neither; add one"),
    "both modalities": (
        "data:\n  tabular: {path: a, target_column: y}\n  image: {path: b}",
        "c.yaml:3: data.image: expected one of data.tabular and data.image, got both; for images beside columns keep "
        "the table and name its columns of images in `data.tabular.images`",
    ),
    "an image column with another use": (
        "data: {tabular: {path: a, target_column: y, images: {columns: [p, y]}}}",
        "c.yaml:1: data.tabular.images.columns: expected another column than data.tabular.target_column, got 'y' for "
        "both",
    ),
    "a trunk that sees no images": (
        MIXED + "model: {name: mlp}",
        "c.yaml:2: model.name: expected resnet, resnet18 to resnet50 (or with d), [tf_]efficientnet_b0 to b4, airbench "
        "or airbench_s (the trunk of the images) for data.tabular.images, got mlp",
    ),
    "type of images alone": (
        MIXED + "model: {type: vision}",
        "c.yaml:2: model.type: expected multimodal for data.tabular.images, got vision",
    ),
    "shares": (
        "data:\n  tabular:\n    path: a\n    target_column: y\n    train_split: 0.8",
        "c.yaml:5: data.tabular.train_split: expected train, validation and test shares that sum to 1, got "
        "0.8 + 0.1 + 0.2 = 1.1",
    ),
    "nothing to train on": (
        "data: {image: {path: a, train_split: 0, test_split: 0.9}}",
        "c.yaml:1: data.image.train_split: expected a number > 0, got 0; there would be nothing to learn from",
    ),
    "stopping without validation": (
        "data: {image: {path: a, train_split: 0.8, validation_split: 0}}\n"
        "training:\n  early_stopping:\n    enabled: true",
        "c.yaml:4: training.early_stopping.enabled: expected validation rows to stop on, got `validation_split: 0`; "
        "raise it or monitor train_loss",
    ),
    "monitoring without validation": (
        "data: {image: {path: a, train_split: 0.8, validation_split: 0}}\n"
        "training: {early_stopping: {monitor: val_accuracy}}",
        "c.yaml:2: training.early_stopping.monitor: expected train_accuracy where `data.image.validation_split` is 0, "
        "got val_accuracy; or raise the share",
    ),
    "monitor misspelt": (
        TABLE + "training: {early_stopping: {monitor: validation_loss}}",
        "c.yaml:2: training.early_stopping.monitor: expected val_X or train_X with X one of loss, accuracy, "
        "balanced_accuracy, top_3_accuracy, top_5_accuracy, precision_macro, recall_macro, f1_macro, precision_micro, "
        "recall_micro, f1_micro, precision_weighted, recall_weighted, f1_weighted, precision, recall, f1, roc_auc, "
        "pr_auc, log_loss, refined_log_loss, selection_loss, brier, ece, mcc, rmse, mae, r2, mape, subset_accuracy, "
        "hamming_loss; got 'validation_loss'; did you mean 'val_loss'?",
    ),
    "monitor of another task": (
        TASK % "regression" + "training: {early_stopping: {monitor: val_accuracy}}",
        "c.yaml:2: training.early_stopping.monitor: expected a metric of regression (`data.tabular.task`): loss, rmse, "
        "mae, r2, mape; got accuracy",
    ),
    "monitor for nothing": (
        TABLE + "training: {early_stopping: {enabled: false, monitor: val_loss}, checkpoint: {save_best: false}}",
        "c.yaml:2: training.early_stopping.monitor: has no effect: expected `training.early_stopping.enabled: true` or "
        "`training.checkpoint.save_best: true` with it, got neither",
    ),
    "type of other data": (
        TABLE + "model: {type: vision}",
        "c.yaml:2: model.type: expected tabular for data.tabular, got vision",
    ),
    "name of other data": (
        IMAGES + "model: {name: mlp}",
        "c.yaml:2: model.name: expected resnet, resnet18 to resnet50 (or with d), [tf_]efficientnet_b0 to b4, airbench "
        "or airbench_s for data.image, got mlp",
    ),
    "network of other data": (
        TABLE + "model: {name: resnet18}",
        "c.yaml:2: model.name: expected realmlp, realmlp_s, tabm or mlp for data.tabular, got resnet18",
    ),
    "architecture of another network": (
        TABLE + "model: {architecture: {width: 8}}",
        "c.yaml:2: model.architecture.width: realmlp has no such option; it takes input_dim, hidden_layers, "
        "activation, embedding_dim, dropout",
    ),
    "input_dim of images": (
        IMAGES + "model: {architecture: {input_dim: 8}}",
        "c.yaml:2: model.architecture.input_dim: resnet has no such option; it takes stages, width, dropout, "
        "activation, stem",
    ),
    "stages of a fixed resnet": (
        IMAGES + "model: {name: resnet50, architecture: {stages: [1]}}",
        "c.yaml:2: model.architecture.stages: resnet50 has no such option; it takes dropout, activation, stem",
    ),
    "activation of an efficientnet": (
        IMAGES + "model: {name: efficientnet_b0, architecture: {activation: relu, dropout: 0.2}}",
        "c.yaml:2: model.architecture.activation: efficientnet_b0 has no such option; it takes dropout, stem",
    ),
    "loss of another task": (
        TASK % "classification" + "training: {loss: mse}",
        "c.yaml:2: training.loss: expected one of cross_entropy, focal, bce for classification (`data.tabular.task`), "
        "got mse",
    ),
    "positive class of a regression": (
        "data: {tabular: {path: a, target_column: y, task: regression, positive_class: b}}",
        "c.yaml:1: data.tabular.positive_class: has no effect: expected a classification task with it, got regression "
        "(`data.tabular.task`)",
    ),
    "class weights of a regression": (
        TABLE + "training: {loss: huber, class_weights: balanced}",
        "c.yaml:2: training.class_weights: has no effect: expected a classification task with it, got regression "
        "(`training.loss`)",
    ),
    "label smoothing of a regression": (
        TASK % "regression" + "training: {label_smoothing: 0.1}",
        "c.yaml:2: training.label_smoothing: has no effect: expected a classification task with it, got regression "
        "(`data.tabular.task`)",
    ),
    "class weight twice": (
        TABLE + "training: {class_weights: [{label: a, weight: 1}, {label: a, weight: 2}]}",
        "c.yaml:2: training.class_weights: expected each label once, got 'a' twice; remove one",
    ),
    "head of a trunk twice": (
        "data: {tabular: {path: a, target_column: y, images: {columns: [i]}}}\n"
        "model: {fusion: {own_heads: [images, images]}}",
        "c.yaml:2: model.fusion.own_heads: expected each trunk once, got 'images' 2 times; remove all but one",
    ),
    "column without its name": (
        TABLE + "split: {strategy: column}",
        "c.yaml:2: split.strategy: expected `split.column` with strategy column, got none; name the column",
    ),
    "time without its column": (
        TABLE + "split: {strategy: time}",
        "c.yaml:2: split.strategy: expected `split.column` with strategy time, got none; name the column",
    ),
    "group by the target": (
        TABLE + "split: {strategy: group, column: y}",
        "c.yaml:2: split.column: expected another column than data.tabular.target_column, got 'y' for both",
    ),
    "folders of a table": (
        TABLE + "split: {strategy: folders}",
        "c.yaml:2: split.strategy: expected any strategy but folders for a table, got folders",
    ),
    "stratified regression": (
        TASK % "regression" + "split: {strategy: stratified}",
        "c.yaml:2: split.strategy: expected random or another without classes for regression, got stratified "
        "(`data.tabular.task` says so)",
    ),
    "groups by class of a regression": (
        TASK % "regression" + "split: {strategy: group_stratified, column: g}",
        "c.yaml:2: split.strategy: expected group or another without classes for regression, got group_stratified "
        "(`data.tabular.task` says so)",
    ),
    "one column, two uses": (
        "data: {tabular: {path: a, target_column: y, weight_column: y}}",
        "c.yaml:1: data.tabular.weight_column: expected another column than data.tabular.target_column, got 'y' for "
        "both",
    ),
    "target ignored": (
        "data: {tabular: {path: a, target_column: y, ignore_columns: [x, y]}}",
        "c.yaml:1: data.tabular.ignore_columns: expected columns without a use, got 'y': data.tabular.target_column",
    ),
}  # fmt: skip

PRE = "data: {tabular: {path: a, target_column: y, preprocessing: {%s}}}\n"
IDLE = [
    (PRE % "normalize: false, scaler: robust", "data.tabular.preprocessing.scaler",
     "`data.tabular.preprocessing.normalize: true` with it, got `data.tabular.preprocessing.normalize: false`"),
    (PRE % "fill_value: 0", "data.tabular.preprocessing.fill_value",
     "`data.tabular.preprocessing.handle_missing: constant` with it, got no "
     "`data.tabular.preprocessing.handle_missing`"),
    (PRE % "categorical_encoding: onehot" + "model: {architecture: {embedding_dim: 4}}",
     "model.architecture.embedding_dim",
     "`data.tabular.preprocessing.categorical_encoding: embedding or onehot_or_embedding` with it, got "
     "`data.tabular.preprocessing.categorical_encoding: onehot`"),
    (TABLE + "training: {focal_gamma: 2}", "training.focal_gamma",
     "`training.loss: focal` with it, got no `training.loss`"),
    (TABLE + "training: {huber_delta: 2, loss: mse}", "training.huber_delta",
     "`training.loss: huber` with it, got `training.loss: mse`"),
    (TABLE + "training: {label_smoothing: 0.1, loss: bce}", "training.label_smoothing",
     "`training.loss: cross_entropy` with it, got `training.loss: bce`"),
    (TABLE + "training: {momentum: 0.9, optimizer: lion}", "training.momentum",
     "`training.optimizer: sgd or muon` with it, got `training.optimizer: lion`"),
    (TABLE + "training: {step_every: 0.5, schedule: cosine}", "training.step_every",
     "`training.schedule: step` with it, got `training.schedule: cosine`"),
    (TABLE + "training: {step_factor: 0.5}", "training.step_factor",
     "`training.schedule: step` with it, got no `training.schedule`"),
    (TABLE + "training: {warmup_fraction: 0.5, schedule: constant}", "training.warmup_fraction",
     "`training.schedule: warmup_cosine or one_cycle` with it, got `training.schedule: constant`"),
    (TABLE + "training: {early_stopping: {enabled: false, patience: 3}}", "training.early_stopping.patience",
     "`training.early_stopping.enabled: true` with it, got `training.early_stopping.enabled: false`"),
    (TABLE + "training: {early_stopping: {enabled: false, min_delta: 0}}", "training.early_stopping.min_delta",
     "`training.early_stopping.enabled: true` with it, got `training.early_stopping.enabled: false`"),
    (TABLE + "training: {checkpoint: {enabled: false, path: x}}", "training.checkpoint.path",
     "`training.checkpoint.enabled: true` with it, got `training.checkpoint.enabled: false`"),
    (TABLE + "training: {checkpoint: {enabled: false, every_epochs: 2}}", "training.checkpoint.every_epochs",
     "`training.checkpoint.enabled: true` with it, got `training.checkpoint.enabled: false`"),
    (TABLE + "training: {checkpoint: {enabled: false, every_seconds: 9}}", "training.checkpoint.every_seconds",
     "`training.checkpoint.enabled: true` with it, got `training.checkpoint.enabled: false`"),
    (TABLE + "training: {checkpoint: {enabled: false, keep: 2}}", "training.checkpoint.keep",
     "`training.checkpoint.enabled: true` with it, got `training.checkpoint.enabled: false`"),
    (TABLE[:-2] + ", loading: resident, cache: {path: x}}\n", "data.cache.path",
     "`data.loading: streamed or auto` with it, got `data.loading: resident`"),
    (TABLE[:-2] + ", loading: resident, cache: {max_gib: 1}}\n", "data.cache.max_gib",
     "`data.loading: streamed or auto` with it, got `data.loading: resident`"),
    (TABLE + "split: {column: c}", "split.column",
     "`split.strategy: column or group or group_stratified or time` with it, got no `split.strategy`"),
    ("data: {image: {path: a, test_split: 0.2}}\nsplit: {strategy: column, column: c}", "data.image.test_split",
     "`split.strategy: random or stratified or folders or group or group_stratified or time` with it, got "
     "`split.strategy: column`"),
]  # fmt: skip


def test_columns_of_a_folder_do_nothing(write) -> None:
    told = "has no effect: expected a .csv file as `data.image.path` with it, got pictures; remove this"
    file = write("data: {image: {path: pictures,\n  image_column: photo,\n  target_column: kind}}")
    lines = [f"c.yaml:2: data.image.image_column: {told}", f"c.yaml:3: data.image.target_column: {told}"]
    assert problems_of(file) == lines
    load_config(write("data: {image: {path: pictures.csv, image_column: photo, target_column: kind}}"))


@pytest.mark.parametrize(("text", "expected"), RULES.values(), ids=RULES.keys())
def test_impossible_combinations(write, text: str, expected: str) -> None:
    assert problems_of(write(text)) == [expected]


@pytest.mark.parametrize(("text", "key", "expected"), IDLE, ids=[key for _, key, _ in IDLE])
def test_options_without_effect(write, text: str, key: str, expected: str) -> None:
    (problem,) = problems_of(write(text))
    assert problem.partition(": ")[2] == f"{key}: has no effect: expected {expected}; set that, or remove this"


@pytest.mark.parametrize(
    "text",
    [
        "data: {tabular: {path: a, target_column: y, train_split: 1, validation_split: 0, test_split: 0}}",
        "data: {tabular: {path: a, target_column: y, train_split: 0.8, validation_split: 0}}\n"
        "training: {early_stopping: {enabled: true, monitor: train_loss}}",
        "data: {tabular: {path: a, target_column: y, train_split: 0.3333333, validation_split: 0.3333333, "
        "test_split: 0.3333334}}",
        "data: {tabular: {path: a, target_column: y}, image: null}",
        "data: {image: {path: a.csv, id_column: image}}",
        TABLE + "split: {strategy: column, column: c}",
        "data: {tabular: {path: a, target_column: y, test_split: 0.2, ignore_columns: [c]}}\n"
        "split: {strategy: time, column: c}",
        TASK % "regression" + "split: {strategy: group, column: c}",
        TABLE + "model: {architecture: {input_dim: null, hidden_layers: []}}",
        TABLE + "training: {early_stopping: {enabled: false, monitor: val_loss}}",
        TABLE + "training: {loss: focal, focal_gamma: 1}",
        TABLE + "training: {loss: bce, class_weights: [{label: a, weight: 0}]}",
        TABLE + "training: {optimizer: sgd, momentum: 0, schedule: one_cycle, warmup_fraction: 0.3}",
        TASK % "regression" + "training: {loss: huber, huber_delta: 0.5, early_stopping: {monitor: val_rmse}}",
        IMAGES + "model: {name: efficientnet_b4, architecture: {dropout: 0.3}}",
        IMAGES + "split: {strategy: folders}",
    ],
)
def test_what_is_possible_is_not_refused(write, text: str) -> None:
    assert load_config(write(text)).name == "c"


def test_everything_is_said_at_once(write) -> None:
    text = (
        "data:\n  tabular:\n    path: 5\n    target_column: y\n    train_split: 0.9\n"
        "training:\n  epoch: 3\n  momentum: 0.5\n  loss: hubr\n  huber_delta: 2\nseed: 1\nseed: 2\n"
    )
    places = [problem.split(": ")[:2] for problem in problems_of(write(text), "device=tpu", "bad", "split.x=1")]
    assert places == [
        ["--set bad", "expected KEY=VALUE with a key such as training.epochs"],
        ["c.yaml:12", "seed"],
        ["c.yaml:3", "data.tabular.path"],
        ["c.yaml:7", "training.epoch"],
        ["c.yaml:9", "training.loss"],
        ["--set device=tpu", "device"],
        ["--set split.x=1", "split.x"],
        ["c.yaml:8", "training.momentum"],
        ["c.yaml:5", "data.tabular.train_split"],
    ], "huber_delta rests on a loss that is unknown, so nothing is said of it"


def test_files_that_cannot_be_read(write, tmp_path: Path) -> None:
    write(TABLE, "iris.yaml")
    Path("latin.yaml").write_bytes(b"data: 1\nname: caf\xe9\n")
    (tmp_path / "folder").mkdir()
    assert problems_of("irs.yaml") == ["irs.yaml: cannot be read: no such file; did you mean 'iris.yaml'?"]
    assert problems_of("no/x.yaml") == ["no/x.yaml: cannot be read: no such file (the folder no does not exist)"]
    assert problems_of("folder") == ["folder: cannot be read: expected a YAML file, got a folder"]
    assert problems_of("iris.yaml/x") == ["iris.yaml/x: cannot be read: Not a directory"]
    assert problems_of("latin.yaml") == ["latin.yaml:2: expected UTF-8 text, got the byte 0xe9"]
    assert problems_of("a\0b") == ["'a\\x00b': cannot be read: embedded null byte"]
    assert problems_of(write("# nothing\n")) == ["c.yaml: the file is empty; expected at least the key `data`"]
    assert problems_of(write("\n- 1\n")) == ["c.yaml:2: expected a mapping of keys such as `data:`, got a list of 1"]
    assert problems_of(write("hello")) == ["c.yaml:1: expected a mapping of keys such as `data:`, got text 'hello'"]
    assert problems_of(write("a: [", "b.yaml"), "x") == [
        "--set x: expected KEY=VALUE with a key such as training.epochs",
        "b.yaml:1: invalid YAML: while parsing a flow node, expected the node content, but found '<stream end>'",
    ]


def test_a_byte_order_mark_is_no_matter(write) -> None:
    assert load_config(write("\ufeff" + TABLE)).name == "c"


def test_a_stem_that_is_no_name_is_said(write) -> None:
    assert problems_of(write(TABLE, "my config.yaml")) == [
        "my config.yaml (the file's stem, as it gives no name): name: expected at most 100 of A-Z a-z 0-9 . _ -, the "
        "first a letter or digit, got text 'my config'"
    ]
    assert load_config("my config.yaml", ["name=mine"]).name == "mine"


def test_extends_merges_mappings_and_replaces_the_rest(write) -> None:
    write(
        TABLE + "model: {architecture: {hidden_layers: [8, 8, 8], dropout: 0.5}}\n"
        "training: {loss: huber, huber_delta: 2, epochs: 9}\n",
        "base/root.yaml",
    )
    write("extends: root.yaml\nseed: 4\ntraining: {batch_size: 16}\n", "base/middle.yaml")
    child = write(
        "extends: base/middle.yaml\nmodel: {architecture: {hidden_layers: [4]}}\n"
        "training:\n  loss: mse\n  huber_delta: null\n"
    )
    config, origins = load_config_with_origins(child)
    assert (config.name, config.seed) == ("c", 4)
    assert (config.model.architecture.hidden_layers, config.model.architecture.dropout) == ((4,), 0.5)
    assert config.training == Training(epochs=9, batch_size=16, loss="mse")
    assert origins["data.tabular.path"] == "base/root.yaml:1"
    assert origins["training.batch_size"] == "base/middle.yaml:3"
    assert origins["training.loss"] == "c.yaml:4"
    assert origins["training.huber_delta"] == origins["name"] == "default"


def test_extends_swaps_the_modality(write) -> None:
    write(TABLE, "base.yaml")
    config = load_config(write("extends: base.yaml\ndata: {tabular: null, image: {path: p}}\n"))
    assert config.data == Data(image=ImageData(path="p"))


def test_extends_errors_name_the_file_that_is_wrong(write) -> None:
    write("data: {tabular: {path: a}}\nsede: 1\n", "base.yaml")
    problems = problems_of(write("extends: base.yaml\nthreads: x\n"))
    assert [problem.split(": ")[:2] for problem in problems] == [
        ["base.yaml:1", "data.tabular.target_column"],
        ["base.yaml:2", "sede"],
        ["c.yaml:2", "threads"],
    ]


def test_extends_that_lead_nowhere(write) -> None:
    write("extends: b.yaml\n", "sub/a.yaml")
    write("extends: ../c.yaml\n", "sub/b.yaml")
    assert problems_of(write("seed: 1\nextends: sub/a.yaml\n")) == [
        "sub/b.yaml:1: extends: expected a file that does not lead back here, got "
        "c.yaml -> sub/a.yaml -> sub/b.yaml -> c.yaml"
    ]
    assert problems_of(write("extends: sub/aa.yaml\n")) == [
        "c.yaml:1: extends: sub/aa.yaml: cannot be read: no such file; did you mean 'a.yaml'?"
    ]
    assert problems_of(write("extends: [a]\n")) == [
        "c.yaml:1: extends: expected the path of a YAML file, got a list of 1"
    ]
    for i in range(40):
        write(f"extends: d{i + 1}.yaml\n", f"d{i}.yaml")
    assert problems_of("d0.yaml") == ["d31.yaml:1: extends: expected at most 32 files in a chain, got more"]


def test_overrides(write) -> None:
    overrides = [
        "training.epochs=7",
        "training.epochs=8",
        "model.architecture.hidden_layers=[4, 2]",
        "training={batch_size: 5}",
        'data.tabular.positive_class="1"',
        "data.tabular.delimiter=;",
        "threads=",
        "name=x",
    ]
    config, origins = load_config_with_origins(write(TABLE + "threads: 3\n"), overrides)
    assert (config.training.epochs, config.training.batch_size, config.threads) == (8, 5, None)
    assert config.model.architecture.hidden_layers == (4, 2)
    assert config.data.tabular is not None
    assert (config.data.tabular.positive_class, config.data.tabular.delimiter) == ("1", ";")
    assert (config.name, origins["name"], origins["training.batch_size"]) == ("x", "--set", "--set")
    assert origins["threads"] == "default"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.epochs", "expected KEY=VALUE with a key such as training.epochs"),
        ("=5", "expected KEY=VALUE with a key such as training.epochs"),
        ("training..epochs=5", "expected KEY=VALUE with a key such as training.epochs"),
        ("a." * 99 + "b=5", "expected KEY=VALUE with a key such as training.epochs"),
        ("extends=a.yaml", "`extends` belongs in a file; give that file as the config"),
        ("training.epochs=[", "invalid YAML: while parsing a flow node, expected the node content, but found "
                              "'<stream end>'"),
        ("training.epochs={a: 1, a: 2}", "a: key given twice, first at --set training.epochs={a: 1, a: 2}; remove one"),
        ("training.epochs.x=5", "training.epochs: expected a whole number >= 1, got a mapping"),
        ("training.epochs=x", "training.epochs: expected a whole number >= 1, got text 'x'"),
        ("device=null", "device: expected one of auto, cpu, gpu, got nothing; give a value or remove the key"),
    ],
)  # fmt: skip
def test_wrong_overrides(write, override: str, expected: str) -> None:
    assert problems_of(write(TABLE), override)[0] == f"--set {override}: {expected}"


def test_an_override_that_cannot_be_printed_is_escaped(write) -> None:
    assert problems_of(write(TABLE), "a\nb") == ["--set 'a\\nb': expected KEY=VALUE with a key such as training.epochs"]


def test_origins_name_every_key(write) -> None:
    loaded = load_config_with_origins(write(TABLE + "seed: 3"), ["training.learning_rate=1e-3"])
    assert tuple(loaded.origins) == key_paths()
    rows = {line.split()[0]: line.split()[1:] for line in format_origins(loaded).splitlines()}
    assert rows["seed"] == ["3", "c.yaml:2"]
    assert rows["training.learning_rate"] == ["0.001", "--set"]
    assert rows["training.epochs"] == ["(recipe)", "default"]
    assert rows["data.tabular.path"] == ["a.csv", "c.yaml:1"]
    assert rows["data.tabular.weight_column"] == ["null", "default"]
    assert not any(key.startswith("data.image.") for key in rows)


def test_dicts_and_yaml_bring_the_config_back(write) -> None:
    for text in (EVERY_KEY_OF_THE_ISSUE, TABLE, IMAGES, TABLE + "training: {class_weights: [{label: no, weight: 1}]}"):
        config = load_config(write(text))
        assert config_from_dict(config_to_dict(config), "x") == config
        assert load_config(write(config_to_yaml(config), "again.yaml")) == config


@pytest.mark.parametrize(
    "text", ["no", "1", "1e-3", "~", "", " x", "a: b", "- x", "#x", "<<", "=", "\x85", "a\nb", "é", "😀"]
)
def test_any_text_survives_being_written(write, text: str) -> None:
    table = TabularData(path="a", target_column="y", missing_markers=("x" + text,), ignore_columns=(text, "a" + text))
    config = Config(name="x", data=Data(tabular=table))
    assert load_config(write(config_to_yaml(config))) == config


def test_a_dict_leaves_out_what_a_recipe_decides(write) -> None:
    content = config_to_dict(load_config(write(TABLE)))
    assert "epochs" not in content["training"]
    assert content["data"]["tabular"]["missing_markers"][0] == "?"
    assert content["data"]["image"] is None


def test_a_resolved_config_comes_back(write) -> None:
    """A recipe gives values to options that do nothing here; neither a bundle nor a written file trips over them."""
    text = TASK % "regression" + "training: {loss: mse}"
    config = load_config(write(text))
    stopping = msgspec.structs.replace(config.training.early_stopping, enabled=False, patience=9, monitor="")
    training = msgspec.structs.replace(config.training, label_smoothing=0.0, early_stopping=stopping, epochs=9)
    resolved = msgspec.structs.replace(config, training=training)
    assert config_from_dict(config_to_dict(resolved), "bundle/config.json") == resolved
    again = load_config(write(config_to_yaml(resolved), "again.yaml"))
    assert (again.training.epochs, again.training.early_stopping.enabled) == (9, False)
    assert (again.training.label_smoothing, again.training.early_stopping.monitor) == (UNSET, UNSET)


def test_dict_errors_name_the_place_and_the_key() -> None:
    content = {"name": "x", "data": {"tabular": {"path": "a", "target_column": 5}}, "seed": float("nan"), "extends": 1}
    with pytest.raises(ConfigError) as caught:
        config_from_dict(content, "bundle/config.json")
    assert [problem.split(";")[0] for problem in caught.value.problems] == [
        "bundle/config.json: data.tabular.target_column: expected text that is not empty or a list of 2 or more, each "
        "text that is not empty, got the number 5",
        "bundle/config.json: seed: expected a whole number >= 0, got the number NaN",
        "bundle/config.json: extends: unknown key",
    ]
    for odd in (object(), 10**400, "\ud800", [[[[1]]]] * 2):
        with pytest.raises(ConfigError, match=r"here: seed"):
            config_from_dict({"name": "x", "data": {"image": {"path": "p"}}, "seed": odd}, "here")
    deep: object = 1
    for _ in range(2_000):
        deep = [deep]
    with pytest.raises(ConfigError, match="nested too deeply"):
        config_from_dict({"name": "x", "data": deep}, "here")


def test_differences(write) -> None:
    a = load_config(write(TABLE + "seed: 1\ntraining: {epochs: 3}"))
    b = load_config(write(TABLE + "model: {architecture: {hidden_layers: [2]}}"))
    assert diff_configs(a, b) == [
        ("model.architecture.hidden_layers", None, [2]),
        ("training.epochs", 3, None),
        ("seed", 1, 0),
    ]
    assert diff_configs(a, a) == []
