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
from mmjax.config import Config, ImageData, TableImages, image_settings, table_images
from mmjax.data.loading import choose_loading
from mmjax.data.prepare_table import expected_bytes
from mmjax.data.prepared import Prepared, rows_to_learn
from mmjax.errors import ConfigError
from mmjax.models.architecture import resolve_architecture
from mmjax.models.pretrained import preprocessing_of
from mmjax.models.state_dict import load_state_dict
from mmjax.recipe_training import REALMLP, TABM, TD, TD_S, Choice, training_choices
from mmjax.schema import Schema


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
        *training_choices(config, schema, name, train_rows, validation_rows),
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
    rows = rows_to_learn(prepared.split, prepared.batch.get("weight"))
    choices = training_choices(config, prepared.schema, str(config.model.name), *rows)
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
    ("model.fusion.own_heads", (), "what only images and columns together tell is learnt from fewest rows"),
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
    most, most_why = (1000, TD_S) if name == "realmlp_s" else (8, TD)
    if name == "tabm":
        bins, bins_why = min(48, train_rows // 4), f"{TABM}, at most one for 4 rows"
        most, most_why = 64, "one-hot as in TabM, unless the first layer would be wide"
    elif name not in REALMLP:
        encoding, encoding_why = "embedding", "learns what categories have in common"
    elif name == "realmlp_s":
        bins, bins_why, encoding_why = 0, TD_S, "one-hot, scaled as numbers are"
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
