"""How a network is trained where the config leaves it open: by its family, the rows, and where it starts from."""

import math
from typing import Any

from msgspec import UNSET

from mmjax.config import Config, Training, table_images
from mmjax.schema import Schema
from mmjax.training.matrix_scaling import MOST_CLASSES

Choice = tuple[str, Any, str]
"""Key path, value, reason."""

CALIBRATION_ROWS = 100
"""Validation rows from which on a temperature is fitted to them."""
REALMLP = ("realmlp", "realmlp_s")
TD, TD_S = (f"{name}'s default (arXiv 2407.04491)" for name in ("RealMLP-TD", "RealMLP-TD-S"))
TABM = "TabM's default (arXiv 2410.24210)"
AIRBENCH = ("airbench", "airbench_s")
_AIRBENCH = "after airbench94 (arXiv 2404.00498)"


def training_choices(config: Config, schema: Schema, name: str, train_rows: int, validation_rows: int) -> list[Choice]:
    """Return the Choices about training, and about the architecture that goes with it (airbench)."""
    common = _common_choices(config, schema, name, validation_rows)
    if name in REALMLP:
        return common + _realmlp_choices(config, name, schema.target.task, train_rows, validation_rows)
    if name == "tabm":
        return common + _tabm_choices(config, schema.target.task != "regression", train_rows, validation_rows)
    if _alone(config, name):
        return common + _airbench_choices(config, name, train_rows, validation_rows)
    return common + _other_choices(config, schema, train_rows, validation_rows)


def _alone(config: Config, name: str) -> bool:
    """Return whether airbench looks at images without columns, as it was made for."""
    return name in AIRBENCH and config.data.image is not None


def _common_choices(config: Config, schema: Schema, name: str, validation_rows: int) -> list[Choice]:
    """Return what is asked of every family."""
    task = schema.target.task
    loss = {"classification": "cross_entropy", "multilabel": "bce"}.get(task, "mse")
    smooths = task == "classification" and config.training.loss in ("cross_entropy", UNSET)
    clamps = task == "regression" and config.training.loss != "pinball"
    return [
        ("training.loss", loss, f"the target is a {task} target"),
        ("training.calibration", *_calibration(config.training, schema, validation_rows)),
        *([_smoothing(name)] if smooths else []),
        *([_clamping(name)] if clamps else []),
        *([("training.layer_decay", *_layer_decay(config))] if schema.image else []),
        _averaging(config, name),
        _clipping(name),
    ]


def _smoothing(name: str) -> Choice:
    if name in AIRBENCH:
        return ("training.label_smoothing", 0.1, f"{_AIRBENCH}, less of it")
    return ("training.label_smoothing", 0.0, "keeps probabilities honest")


def _clamping(name: str) -> Choice:
    if name == "realmlp":
        return ("training.clamp", True, TD)
    return ("training.clamp", False, "answers may lie beyond the training targets")


def _averaging(config: Config, name: str) -> Choice:
    if _alone(config, name):
        return ("training.ema_decay", AIRBENCH_EMA, f"{_AIRBENCH}, whose lookahead averages too")
    return ("training.ema_decay", None, "the last weights are kept")


def _clipping(name: str) -> Choice:
    if name == "tabm":
        return ("training.gradient_clip_norm", 1.0, TABM)
    return ("training.gradient_clip_norm", None, "steps are steady without it")


def _other_choices(config: Config, schema: Schema, train_rows: int, validation_rows: int) -> list[Choice]:
    """Return how a plain network is trained, of tables or of images."""
    rows = f"{train_rows} training rows"
    batch_size, epochs = _table_batch_size(train_rows), _table_epochs(train_rows)
    if schema.image:
        batch_size, epochs = _image_batch_size(train_rows), _image_epochs(train_rows)
        if schema.features and train_rows < FEW_FUSED:
            batch_size = 16
            epochs = max(epochs, min(60, math.ceil(FUSED_STEPS * batch_size / train_rows)))
            rows = f"{rows}, and columns take about {FUSED_STEPS:,} steps"
    return [
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
    why = TD_S if simple else TD
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
        ("training.optimizer", "adamw", TABM),
        ("training.adam_b2", 0.999, "Adam's own"),
        ("training.learning_rate", 2e-3 if usual else _learning_rate(config), TABM),
        ("training.weight_decay", 3e-4, TABM),
        ("training.decay_schedule", "constant", TABM),
        ("training.schedule", "constant", TABM),
        *_stopping_choices(config.training, validation_rows, epochs, monitor=monitor, waits=(16, TABM)),
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


FEW_FUSED, FUSED_STEPS = 1_000, 1_500
"""Images beside columns take about so many steps, in at most 60 epochs, where training rows are fewer than this."""


def _image_epochs(rows: int) -> int:
    for limit, epochs in ((500, 40), (5_000, 30), (20_000, 12)):
        if rows <= limit:
            return epochs
    return 6
