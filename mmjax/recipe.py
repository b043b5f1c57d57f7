"""The recipe: decides every config field left open, from the look of the data, and says why.

An explicit value always wins. What was decided is printed, saved in the run and travels in the bundle as part of the
resolved config, so a model never depends on a later version's defaults.
"""

import functools
import json
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from mmjax.backend import fast_bfloat16, platform
from mmjax.config import Config, ImageData, TableImages, Training, image_settings, table_images
from mmjax.data.loading import choose_loading
from mmjax.data.prepare_table import expected_bytes
from mmjax.data.prepared import Prepared, rows_to_learn
from mmjax.errors import ConfigError
from mmjax.models.build import resolve_architecture
from mmjax.models.pretrained import preprocessing_of
from mmjax.models.state_dict import load_state_dict
from mmjax.schema import Schema
from mmjax.training.matrix_scaling import MOST_CLASSES


class Decision(NamedTuple):
    """One field that the recipe decided."""

    key: str
    value: Any
    why: str


def as_yaml(value: Any) -> str:
    """Return the value of a Decision as a config would have it.

    >>> as_yaml((64, 64)), as_yaml(None), as_yaml(False), as_yaml("adamw")
    ('[64, 64]', 'null', 'false', 'adamw')
    """
    return value if isinstance(value, str) else json.dumps(value)


Choice = tuple[str, Any, str]
"""Key path, value, reason."""


def resolve(
    config: Config,
    schema: Schema,
    *,
    train_rows: int,
    validation_rows: int,
    fast_bfloat16: bool = False,
    on_cpu: bool = True,
) -> tuple[Config, tuple[Decision, ...]]:
    """Return the config with every field decided, and the Decisions that were taken.

    `fast_bfloat16` says whether the device computes faster in it than in f32 (`mmjax.backend.fast_bfloat16`).
    `on_cpu` says whether a CPU will train it. Raises ConfigError for a batch that no training row would fill.
    """
    batch_size = config.training.batch_size
    if isinstance(batch_size, int) and batch_size > train_rows:
        raise ConfigError(
            f"training.batch_size: expected at most {train_rows}, the number of training rows, got {batch_size}; "
            "lower it, or remove it and it is chosen"
        )
    fused = table_images(config) is not None
    presets = _preset_choices(config, schema, train_rows, on_cpu)
    name = _model_name(config, presets)
    choices = (
        _precision(schema, fast_bfloat16),
        *_data_choices(config, schema, name, train_rows),
        ("model.type", "multimodal" if fused else "vision" if schema.image else "tabular", "follows from the data"),
        *(_FUSION if fused else ()),
        *presets,
        *_training_choices(config, schema, name, train_rows, validation_rows),
        _baselines(schema, train_rows),
    )
    decisions = tuple(Decision(*choice) for choice in choices if _get(config, choice[0]) is UNSET)
    for decision in decisions:
        config = decided(config, decision)
    architecture = resolve_architecture(config.model, schema)
    shape = [
        Decision(f"model.architecture.{name}", value, f"the default of {config.model.name}")
        for name in architecture.__struct_fields__
        if (value := getattr(architecture, name)) is not UNSET and getattr(config.model.architecture, name) is UNSET
    ]
    model = msgspec.structs.replace(config.model, architecture=architecture)
    return msgspec.structs.replace(config, model=model), (*decisions, *shape)


def resolve_prepared(config: Config, prepared: Prepared) -> tuple[Config, tuple[Decision, ...]]:
    """Return the config with every field decided from the look of the rows, and the Decisions."""
    train_rows, validation_rows = rows_to_learn(prepared.split, prepared.batch.get("weight"))
    return resolve(
        config,
        prepared.schema,
        train_rows=train_rows,
        validation_rows=validation_rows,
        fast_bfloat16=bool(prepared.schema.image) and fast_bfloat16(),
        on_cpu=platform() == "cpu",
    )


def usual_epochs(config: Config, prepared: Prepared) -> int:
    """Return how many epochs a decided config would get if it said nothing of them."""
    choices = _training_choices(
        config, prepared.schema, str(config.model.name), *rows_to_learn(prepared.split, prepared.batch.get("weight"))
    )
    return next(value for key, value, _ in choices if key == "training.epochs")


def decided(config: Config, decision: Decision) -> Config:
    """Return the config with one more field decided."""
    return _set(config, decision.key.split("."), decision.value)


def with_decisions(decisions: tuple[Decision, ...], later: tuple[Decision, ...]) -> tuple[Decision, ...]:
    """Return decisions with later ones in the place of those of the same key."""
    keys = {decision.key for decision in later}
    return (*(decision for decision in decisions if decision.key not in keys), *later)


def _get(config: Config, path: str) -> Any:
    return functools.reduce(lambda at, name: getattr(at, name, None), path.split("."), config)


def _set(at: Any, names: list[str], value: Any) -> Any:
    head, *rest = names
    return msgspec.structs.replace(at, **{head: _set(getattr(at, head), rest, value) if rest else value})


def _precision(schema: Schema, fast_bfloat16: bool) -> Choice:
    if schema.image and fast_bfloat16:
        return ("precision", "bfloat16", "convolutions are faster in it here, and as accurate")
    return ("precision", "float32", "not faster in bfloat16 here" if schema.image else "as fast as any for tables")


CALIBRATION_ROWS = 100
"""Validation rows from which on a temperature is fitted to them."""
REALMLP = ("realmlp", "realmlp_s")
_TD, _TD_S = (f"{name}'s default (arXiv 2407.04491)" for name in ("RealMLP-TD", "RealMLP-TD-S"))
_TABM = "TabM's default (arXiv 2410.24210)"


PRESETS: dict[str, tuple[Choice, ...]] = {
    "fast": (("model.name", "realmlp_s", "preset fast: a good answer soon"),),
    "default": (("model.name", "realmlp", "the default for tabular data"),),
    "best": (
        ("model.name", "tabm", "preset best: many members in one network"),
        ("model.architecture.hidden_layers", (256, 256), "preset best: a sixth of the work of TabM's own size"),
        ("model.architecture.members", 16, "preset best: a sixth of the work of TabM's own size"),
    ),
}
"""What a preset decides of a table's config beside folds; whatever the config says wins."""
BEST_FOLDS = 5


def before_data(config: Config) -> tuple[Config, tuple[Decision, ...]]:
    """Return the config with what is decided before rows are read or dealt, and the Decisions.

    Folds of the preset `best`; the preprocessing of `model.pretrained`. DataError where its file cannot be read.
    """
    table, training, images = config.data.tabular, config.training, image_settings(config)
    if config.model.pretrained is not None and images is not None:
        return _of_pretrained(config, images, config.model.pretrained)
    if config.preset != "best" or table is None or config.split.folds is not UNSET:
        return config, ()
    folds, why = BEST_FOLDS, "preset best: a model for each, and honest answers to calibrate on"
    if training.members > 1 or training.seeds:
        folds, why = 0, "members or seeds are asked for"
    elif config.split.strategy in ("column", "folders", "time"):
        folds, why = 0, f"split.strategy is {config.split.strategy}"
    elif choose_loading(config.data.loading, expected_bytes(table.path))[0]:
        folds, why = 0, "rows are streamed from disk"
    decision = Decision("split.folds", folds, why)
    return decided(config, decision), (decision,)


def _of_pretrained(config: Config, image: ImageData | TableImages, weights: str) -> tuple[Config, tuple[Decision, ...]]:
    """Return the config with the preprocessing that the weights were made for where it says nothing else."""
    name = config.model.name
    assert name is not UNSET, "the config rules ask for a name"
    load_state_dict(weights)  # now, not when all images are decoded
    found, why = preprocessing_of(name, weights)
    choices = [
        ("image_size", (found.size_px, found.size_px), image.image_size is UNSET),
        ("filter", found.filter, image.filter is UNSET),
        # A size of one's own is for other images: then all of them is kept.
        (
            "crop_share",
            found.crop_share,
            image.crop_share is None and image.image_size is UNSET and image.resize == "crop",
        ),
    ]
    if image.augmentation.normalize and image.channel_mean is None:
        choices += [("channel_mean", found.mean, True), ("channel_std", found.std, True)]
    why = f"of the pretrained weights: {why}"
    decisions = tuple(Decision(_images_path(config) + key, value, why) for key, value, is_open in choices if is_open)
    return functools.reduce(decided, decisions, config), decisions


def _images_path(config: Config) -> str:
    return "data.image." if table_images(config) is None else "data.tabular.images."


SMALL_PX, SMALL_ROWS = 96, 1_000
"""Images whose shorter side is below this, and training images from which on airbench is chosen."""


def _preset_choices(config: Config, schema: Schema, train_rows: int, on_cpu: bool) -> tuple[Choice, ...]:
    if schema.image is None:
        return PRESETS[config.preset] if config.model.name is UNSET else ()
    px = min(schema.image.height_px, schema.image.width_px)
    numbers, fused = schema.target.task == "regression", table_images(config) is not None
    if px >= SMALL_PX or train_rows < SMALL_ROWS or numbers or fused:
        return (("model.name", "resnet", f"the default for {train_rows} images of {px} px"),)
    name, where = ("airbench_s", "a CPU") if on_cpu else ("airbench", "a GPU")
    return (("model.name", name, f"{train_rows} images of {px} px, on {where}"),)


def _model_name(config: Config, presets: tuple[Choice, ...]) -> str:
    if config.model.name is not UNSET:
        return config.model.name
    return next(value for key, value, _ in presets if key == "model.name")


_FUSION: tuple[Choice, ...] = (
    ("model.fusion.join", "concatenate", "the join that asks least of few rows"),
    ("model.fusion.pooling", "mean", "the pooling that asks least of few rows"),
    ("model.fusion.width", 128, "enough for either trunk"),
    ("model.fusion.hidden_layers", (128, 128), "the columns are the smaller part"),
    ("model.fusion.dropout", 0.1, "the default of mlp"),
    ("model.fusion.modality_dropout", 0.2, "rows without images or without columns are answered too"),
)


def _data_choices(config: Config, schema: Schema, name: str, train_rows: int) -> list[Choice]:
    settings, fused = image_settings(config), table_images(config) is not None
    images = _images_path(config)
    pixels: list[Choice] = []
    if schema.image:
        size = (schema.image.height_px, schema.image.width_px)
        cropped = settings is not None and settings.augmentation.random_resized_crop is not None
        shift, moved = 0.08, "small shifts help at every size"
        if cropped:
            shift, moved = 0.0, "random_resized_crop moves images"
        pixels = [
            (images + "image_size", size, "the size of the images, at most 64 px"),
            (images + "filter", "bilinear", "the usual one"),
            (images + "augmentation.shift", shift, moved),
        ]
    if schema.image and not fused:
        return [("data.image.task", schema.target.task, schema.target.reason), *pixels]
    path = "data.tabular.preprocessing."
    # Not RealMLP-TD's: beside its embeddings they help where numbers jump (adult: ROC-AUC 0.913 -> 0.921, california:
    # RMSE 49,900 -> 49,000) and harmed none of wine_quality and telco_churn.
    numbers = len(schema.numeric_features)
    bins = _numeric_bins(numbers, train_rows)
    bins_why = f"{numbers} numeric column{'' if numbers == 1 else 's'}, {train_rows} training rows"
    encoding, encoding_why = "onehot_or_embedding", "one-hot for few categories, learnt for many"
    most, most_why = (1000, _TD_S) if name == "realmlp_s" else (8, _TD)
    if name == "tabm":
        bins, bins_why = min(48, train_rows // 4), f"{_TABM}, at most one for 4 rows"
        most, most_why = 64, "one-hot as in TabM, unless the first layer would be wide"
    elif name not in REALMLP:
        encoding, encoding_why = "embedding", "learns what categories have in common"
    elif name == "realmlp_s":
        bins, bins_why, encoding_why = 0, _TD_S, "one-hot, scaled as numbers are"
    return [
        ("data.tabular.task", schema.target.task, schema.target.reason),
        *pixels,
        (path + "scaler", "robust", "outliers move neither the centre nor the scale"),
        (path + "numeric_bins", bins, bins_why),
        (path + "handle_missing", "median", "outliers do not move it"),
        (path + "categorical_encoding", encoding, encoding_why),
        (path + "onehot_categories", most, most_why),
    ]


BOOSTED_ROWS = 2_000
"""Training rows from which on gradient boosting is asked too: below, loading a library for it alone takes as long as
the training."""


def _baselines(schema: Schema, train_rows: int) -> Choice:
    if not schema.features:
        return ("evaluation.baselines", "quick", "of images only the majority or mean is asked")
    boost = train_rows >= BOOSTED_ROWS
    why = "boosting takes seconds" if boost else "boosting would take longer than the training"
    return ("evaluation.baselines", "all" if boost else "quick", f"{train_rows} training rows: {why}")


def _numeric_bins(columns: int, rows: int) -> int:
    """One bin for about 20 rows, at most 64, and at most 1024 for all columns, so the first layer stays small."""
    bins = min(64, rows // 20, 1024 // max(columns, 1))
    return bins if bins >= 8 else 0


def _training_choices(config: Config, schema: Schema, name: str, train_rows: int, validation_rows: int) -> list[Choice]:
    task, rows = schema.target.task, f"{train_rows} training rows"
    classify, loss = task != "regression", {"classification": "cross_entropy", "multilabel": "bce"}.get(task, "mse")
    smooth = (0.1, f"{_AIRBENCH}, less of it") if name in AIRBENCH else (0.0, "keeps probabilities honest")
    smoothing = [("training.label_smoothing", *smooth)]
    clamp = (True, _TD) if name == "realmlp" else (False, "answers may lie beyond the training targets")
    clamping = [("training.clamp", *clamp)]
    small = name in AIRBENCH and config.data.image is not None
    averaged = (
        (AIRBENCH_EMA, f"{_AIRBENCH}, whose lookahead averages too") if small else (None, "the last weights are kept")
    )
    common = [
        ("training.loss", loss, f"the target is a {schema.target.task} target"),
        ("training.calibration", *_calibration(config.training, schema, validation_rows)),
        *(smoothing if config.training.loss in ("cross_entropy", UNSET) and task == "classification" else []),
        *(clamping if task == "regression" and config.training.loss != "pinball" else []),
        *([("training.layer_decay", *_layer_decay(config))] if schema.image else []),
        ("training.ema_decay", *averaged),
        ("training.gradient_clip_norm", *((1.0, _TABM) if name == "tabm" else (None, "steps are steady without it"))),
    ]
    if name in REALMLP:
        return common + _realmlp_choices(config, name, task, train_rows, validation_rows)
    if name == "tabm":
        return common + _tabm_choices(config, classify, train_rows, validation_rows)
    if small:
        return common + _airbench_choices(config, name, train_rows, validation_rows)
    batch_size = _image_batch_size(train_rows) if schema.image else _table_batch_size(train_rows)
    epochs = _image_epochs(train_rows) if schema.image else _table_epochs(train_rows)
    return [
        *common,
        ("training.batch_size", min(batch_size, train_rows), rows),
        ("training.epochs", epochs, rows),
        ("training.optimizer", "adamw", "robust to the learning rate"),
        *_usual_steps(_peak(config), 0.05 if schema.image else 0.02),
        *_stopping_choices(config.training, validation_rows, epochs),
    ]


def _calibration(training: Training, schema: Schema, validation_rows: int) -> tuple[str, str]:
    """Return how probabilities are calibrated and why. A matrix would undo what weights of classes are given for."""
    if schema.target.task == "regression":
        return "none", "a number has no probability"
    told = f"{validation_rows} validation rows{' with a weight above 0' if schema.weight_column else ''}"
    if validation_rows < CALIBRATION_ROWS:
        return "none", f"{told}, {CALIBRATION_ROWS} are needed"
    classes = len(schema.target.classes)
    if schema.target.labels or not 2 < classes <= MOST_CLASSES or training.class_weights != "none":
        return "temperature", told
    return "matrix", f"{told}, {classes} classes"


def _usual_steps(rate: tuple[float, str], decay: float) -> list[Choice]:
    """How far steps go where no paper's recipe says otherwise; `rate` with its reason."""
    return [
        ("training.adam_b2", 0.999, "Adam's own"),
        ("training.learning_rate", *rate),
        ("training.weight_decay", decay, "mild"),
        ("training.decay_schedule", "constant", "follows the learning rate"),
        ("training.schedule", "warmup_cosine", "ends at zero, so the last weights are settled"),
    ]


AIRBENCH = ("airbench", "airbench_s")
_AIRBENCH = "after airbench94 (arXiv 2404.00498)"
AIRBENCH_RATE = 1e-2
"""Of muon, by validation images of fashion-mnist: 0.937, 0.944, 0.946, 0.944 at 2e-3, 5e-3, 1e-2, 2e-2; adamw 0.938."""

AIRBENCH_WIDTHS = {
    "airbench_s": (32, "two cores train it on 60,000 images of 28 px in half a minute an epoch"),
    "airbench": (64, _AIRBENCH),
}
"""Of validation images of fashion-mnist 0.9512 are right at 32 channels, 0.9468 at 24."""
AIRBENCH_EMA = 0.99
"""About the mean of the last 100 steps. Of 7,500 validation images of fashion-mnist 0.9468 are right at 0.95, 0.98 and
0.99, 0.9463 at 0.995 and without; the log loss is 0.2382 and, without, 0.2410."""


def _airbench_choices(config: Config, name: str, train_rows: int, validation_rows: int) -> list[Choice]:
    """Batches and epochs by rows. The schedule needs all its epochs."""
    rows = f"{train_rows} training rows"
    batch_size = 64 if train_rows <= 4_000 else 256 if name == "airbench_s" else 1024
    epochs = min(100, max(10 if name == "airbench_s" else 15, 200_000 // train_rows))
    mirrors = config.data.image is not None and bool(config.data.image.augmentation.horizontal_flip)
    rate = AIRBENCH_RATE if config.training.optimizer is UNSET else _learning_rate(config)
    return [
        ("model.architecture.width", *AIRBENCH_WIDTHS[name]),
        ("model.architecture.mirrored", mirrors, "as training mirrors" if mirrors else "as training does not mirror"),
        ("training.batch_size", min(batch_size, train_rows), rows),
        ("training.epochs", epochs, rows),
        ("training.optimizer", "muon", _AIRBENCH),
        *_usual_steps((rate, "a good peak for this network and optimizer"), 0.05),
        *_stopping_choices(
            config.training, validation_rows, epochs, enabled=(False, "the schedule needs all its epochs")
        ),
    ]


def _realmlp_choices(config: Config, name: str, task: str, train_rows: int, validation_rows: int) -> list[Choice]:
    """The constants of RealMLP-TD and -TD-S (arXiv 2407.04491, appendix A), batches by rows as in pytabkit's `auto`.

    Its authors choose the epoch of classes by errors alone; refined log loss alone is often least before these are.
    """
    simple, classify = name == "realmlp_s", task != "regression"
    why = _TD_S if simple else _TD
    rate = 0.04 if classify else 0.07 if simple else 0.2
    if isinstance(config.training.optimizer, str) and config.training.optimizer != "adam":
        rate = _learning_rate(config)
    batch_size = next((size for most, size in _REALMLP_BATCHES if train_rows <= most), 1024)
    fast = config.preset == "fast" and config.model.name is UNSET
    epochs, long = _fast_epochs(train_rows) if fast else (256, why)
    whole = (False, "the schedule needs all its epochs; the weights of the best one are kept")
    monitor = _error_monitor(config.training, classify)
    if task == "classification":
        monitor = ("val_selection_loss", "what calibration will leave of the log loss, and the share of errors")
    return [
        ("training.batch_size", min(batch_size, train_rows), f"{train_rows} training rows"),
        ("training.epochs", epochs, long),
        ("training.optimizer", "adam", why),
        ("training.adam_b2", 0.95, why),
        ("training.learning_rate", rate, why),
        ("training.weight_decay", 0.0 if simple else 0.02, why),
        ("training.decay_schedule", "flat_cos", why),
        ("training.schedule", "coslog4", why),
        *_stopping_choices(config.training, validation_rows, epochs, enabled=whole, monitor=monitor),
    ]


def _fast_epochs(train_rows: int) -> tuple[int, str]:
    """Return the epochs of preset fast: with many rows fewer, as each has more steps."""
    if train_rows <= _FAST_ROWS:
        return 32, "preset fast: an eighth of the epochs"
    return 16, f"preset fast: a sixteenth of the epochs above {_FAST_ROWS:,} training rows"


_FAST_ROWS = 8_192
_REALMLP_BATCHES = ((1_024, 64), (8_192, 128), (30_000, 256), (100_000, 512))


def _error_monitor(training: Training, classify: bool) -> tuple[str, str]:
    if classify:
        return ("val_refined_log_loss", "what calibration will leave of the log loss")
    if training.loss == "mae":
        return ("val_mae", "what is trained")
    if training.loss == "pinball":
        return ("val_loss", "what is trained: rmse looks at the median alone")
    return ("val_rmse", "the error in the target's own unit")


def _tabm_choices(config: Config, classify: bool, train_rows: int, validation_rows: int) -> list[Choice]:
    """The constants of TabM (arXiv 2410.24210; `example.ipynb` of its repository), batches by rows as in AutoGluon.

    TabM trains until 16 epochs in a row are no better; here at most `_TABM_EPOCHS`. Without validation rows it trains
    for 50: the best of the paper's tuned models is at 45 to 60 in the median.
    """
    usual = config.training.optimizer in (UNSET, "adamw")
    batch_size = next((size for below, size in _TABM_BATCHES if train_rows < below), 1024)
    epochs, ends = (_TABM_EPOCHS, "ends early") if validation_rows else (50, "there are no validation rows")
    monitor = _error_monitor(config.training, classify)
    return [
        ("training.batch_size", min(batch_size, train_rows), f"{train_rows} training rows"),
        ("training.epochs", epochs, ends),
        ("training.optimizer", "adamw", _TABM),
        ("training.adam_b2", 0.999, "Adam's own"),
        ("training.learning_rate", 2e-3 if usual else _learning_rate(config), _TABM),
        ("training.weight_decay", 3e-4, _TABM),
        ("training.decay_schedule", "constant", _TABM),
        ("training.schedule", "constant", _TABM),
        *_stopping_choices(config.training, validation_rows, epochs, monitor=monitor, waits=(16, _TABM)),
    ]


_TABM_BATCHES = ((2_800, 32), (4_500, 64), (6_400, 128), (32_000, 256), (108_000, 512))
_TABM_EPOCHS = 200


def _stopping_choices(
    training: Training,
    validation_rows: int,
    default_epochs: int,
    *,
    enabled: tuple[bool, str] = (True, "there are validation rows"),
    monitor: tuple[str, str] = ("val_loss", "the smoothest measure of progress"),
    waits: tuple[int, str] | None = None,
) -> list[Choice]:
    epochs = default_epochs if training.epochs is UNSET else training.epochs
    path = "training.early_stopping."
    stops = enabled[0] if training.early_stopping.enabled is UNSET else training.early_stopping.enabled
    patience, why = waits or (max(10, epochs // 4), "a quarter of the epochs, at least 10")
    waiting = [(path + "patience", patience, why)] if stops else []
    if not validation_rows:
        off = (path + "enabled", False, "there are no validation rows")
        return [off] if training.early_stopping.monitor is UNSET else [off, *waiting]
    return [(path + "enabled", *enabled), *waiting, (path + "monitor", *monitor)]


_LEARNING_RATES = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3, "lion": 2e-4, "muon": 2e-3}


def _learning_rate(config: Config) -> float:
    optimizer = config.training.optimizer
    return _LEARNING_RATES[optimizer if isinstance(optimizer, str) else "adamw"]


FINE_TUNING = 0.1
"""Of a learning rate, when pretrained layers move too: they are near their place already."""


JOINED_DECAY = 0.5
"""Of layer-wise rates, where the columns beside pretrained layers start from nothing and need a full one."""


def _peak(config: Config) -> tuple[float, str]:
    rate = _learning_rate(config)
    if config.model.pretrained is None or config.training.freeze == "trunk" or table_images(config):
        return rate, "a good peak for this network and optimizer"
    return FINE_TUNING * rate, "a tenth of that from scratch, as the weights are pretrained"


def _layer_decay(config: Config) -> tuple[float, str]:
    if config.model.pretrained is None or config.training.freeze == "trunk" or not table_images(config):
        return 1.0, "all that learns does so at one rate"
    return JOINED_DECAY, "pretrained stages are near their place, columns and join start from nothing"


def _table_batch_size(rows: int) -> int:
    for limit, size in ((1_000, 32), (4_000, 64), (16_000, 128), (64_000, 256), (256_000, 512)):
        if rows <= limit:
            return size
    return 1024


def _table_epochs(rows: int) -> int:
    """About 10,000 steps for middling tables, more passes over small ones, fewer over large ones."""
    for limit, epochs in ((1_000, 100), (4_000, 80), (16_000, 50), (64_000, 30), (256_000, 20)):
        if rows <= limit:
            return epochs
    return 12


def _image_batch_size(rows: int) -> int:
    return 32 if rows <= 4_000 else 128


def _image_epochs(rows: int) -> int:
    for limit, epochs in ((500, 40), (5_000, 30), (20_000, 12)):
        if rows <= limit:
            return epochs
    return 6
