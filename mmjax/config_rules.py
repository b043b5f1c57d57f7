"""What a config of the right shape may still not say: impossible combinations, and options that would do nothing.

Each rule yields Findings that name every key they rest on, the one to mend first. A key is *given* when a file or an
override holds it; only what is given can be idle.
"""

import functools
from collections import Counter
from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import Any, NamedTuple

from msgspec import UNSET

from mmjax.config import (
    CLASSIFICATION_METRICS,
    METRIC_NAMES,
    MULTILABEL_METRICS,
    REGRESSION_METRICS,
    Config,
    ImageData,
    TabularData,
    fold_count,
    is_csv,
    table_images,
    target_columns,
)
from mmjax.config_conflict import Conflict, Given
from mmjax.config_rules_images import augmentation_conflicts, fine_tuning_conflicts, image_conflicts
from mmjax.errors import did_you_mean
from mmjax.network_facts import OPTIONS, TABLE_NETWORKS


class _Needs(NamedTuple):
    """`key` does something only where `switch` has one of `values`."""

    key: str
    switch: str
    values: tuple[Any, ...]


BY_COLUMN = ("column", "group", "group_stratified", "time")
"""Strategies of the split that read `split.column`."""
_DEALT = ("random", "stratified", "folders", "group", "group_stratified", "time", UNSET)
_SCALING = "data.tabular.preprocessing"
_STOPPING = "training.early_stopping"
_NEEDS = (
    _Needs(f"{_SCALING}.scaler", f"{_SCALING}.normalize", (True,)),
    _Needs(f"{_SCALING}.fill_value", f"{_SCALING}.handle_missing", ("constant",)),
    _Needs(
        "model.architecture.embedding_dim",
        f"{_SCALING}.categorical_encoding",
        ("embedding", "onehot_or_embedding", UNSET),
    ),
    _Needs(f"{_SCALING}.onehot_categories", f"{_SCALING}.categorical_encoding", ("onehot_or_embedding", UNSET)),
    _Needs("training.adam_b2", "training.optimizer", ("adam", "adamw", UNSET)),
    _Needs("training.focal_gamma", "training.loss", ("focal",)),
    _Needs("training.huber_delta", "training.loss", ("huber",)),
    _Needs("training.clamp", "training.loss", ("mse", "mae", "huber", UNSET)),
    _Needs("training.quantiles", "training.loss", ("pinball",)),
    _Needs("training.label_smoothing", "training.loss", ("cross_entropy", UNSET)),
    _Needs("training.momentum", "training.optimizer", ("sgd", "muon")),
    _Needs("training.step_every", "training.schedule", ("step",)),
    _Needs("training.step_factor", "training.schedule", ("step",)),
    _Needs("training.warmup_fraction", "training.schedule", ("warmup_cosine", "one_cycle")),
    _Needs(f"{_STOPPING}.patience", f"{_STOPPING}.enabled", (True, UNSET)),
    _Needs(f"{_STOPPING}.min_delta", f"{_STOPPING}.enabled", (True, UNSET)),
    _Needs("training.checkpoint.path", "training.checkpoint.enabled", (True,)),
    _Needs("training.checkpoint.every_epochs", "training.checkpoint.enabled", (True,)),
    _Needs("training.checkpoint.every_seconds", "training.checkpoint.enabled", (True,)),
    _Needs("training.checkpoint.every_seconds", "training.checkpoint.every_epochs", (UNSET,)),
    _Needs("training.checkpoint.keep", "training.checkpoint.enabled", (True,)),
    *(
        _Needs(f"{images}.{key}", f"{images}.{switch}", values)
        for images in ("data.image", "data.tabular.images")
        for key, switch, values in (
            ("crop_share", "resize", ("crop",)),
            ("channel_mean", "augmentation.normalize", (True,)),
            ("channel_std", "augmentation.normalize", (True,)),
        )
    ),
    _Needs("split.column", "split.strategy", BY_COLUMN),
    _Needs("data.cache.path", "data.loading", ("streamed", "auto")),
    _Needs("data.cache.max_gib", "data.loading", ("streamed", "auto")),
    *(
        _Needs(f"data.{kind}.{part}_split", "split.strategy", _DEALT)
        for kind in ("tabular", "image")
        for part in ("train", "validation", "test")
    ),
)

_LOSSES = {
    "classification": ("cross_entropy", "focal", "bce"),
    "regression": ("mse", "mae", "huber", "pinball"),
    "multilabel": ("bce", "focal"),
}
_METRICS = {
    "classification": CLASSIFICATION_METRICS,
    "regression": REGRESSION_METRICS,
    "multilabel": MULTILABEL_METRICS,
}


def find_conflicts(config: Config, given: Given) -> Iterator[Conflict]:
    """Yield everything the config says that cannot be, or that would have no effect."""
    yield from _split_strategy(config)
    yield from _class_weights(config)
    yield from _without_effect(config, given)
    yield from _members(config, given)
    yield from _quantiles(config)
    tabular, image = config.data.tabular, config.data.image
    if tabular is not None and image is not None:
        message = (
            "expected one of data.tabular and data.image, got both; for images beside columns keep the table and name "
            "its columns of images in `data.tabular.images`"
        )
        yield Conflict(("data.image", "data.tabular"), message)
        return
    section, data = ("data.tabular", tabular) if image is None else ("data.image", image)
    if data is None:
        paths = ("data", "data.tabular", "data.image")
        yield Conflict(paths, "expected `tabular` or `image` in it, got neither; add one")
        return
    rules = (
        _split_shares,
        _column_roles,
        _csv_only,
        _labels,
        _task_options,
        _monitor,
        _model_of_data,
    )
    for rule in rules:
        yield from rule(config, given, section, data)
    yield from fine_tuning_conflicts(config)
    if image is not None:
        yield from image_conflicts(image, given, *_task(config))


def _value(config: Config, path: str) -> Any:
    return functools.reduce(lambda node, name: getattr(node, name, None), path.split("."), config)


def _without_effect(config: Config, given: Given) -> Iterator[Conflict]:
    for key, switch, values in _NEEDS:
        found = _value(config, switch)
        if key in given and found is not None and found not in values:
            choices = " or ".join(_show(value) for value in values if value is not UNSET)
            wanted = f"`{switch}: {choices}`" if choices else f"no `{switch}`"
            yield Conflict(
                (key, switch),
                f"has no effect: expected {wanted} with it, got {_show_key(switch, found)}; "
                f"{'set' if choices else 'remove'} that, or remove this",
                idle=True,
            )


def _show(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _show_key(path: str, value: object) -> str:
    return f"no `{path}`" if value is UNSET else f"`{path}: {_show(value)}`"


def _split_shares(config: Config, given: Given, section: str, data: TabularData | ImageData) -> Iterator[Conflict]:
    paths = tuple(f"{section}.{part}_split" for part in ("train", "validation", "test"))
    total = data.train_split + data.validation_split + data.test_split
    if abs(total - 1.0) > 1e-6:
        shares = f"{data.train_split:g} + {data.validation_split:g} + {data.test_split:g}"
        message = f"expected train, validation and test shares that sum to 1, got {shares} = {total:g}"
        yield Conflict(paths, message)
    if data.train_split == 0.0:
        yield Conflict(paths[:1], "expected a number > 0, got 0; there would be nothing to learn from")


def _split_strategy(config: Config) -> Iterator[Conflict]:
    strategy, paths = config.split.strategy, ("split.strategy", "split.column")
    if strategy in BY_COLUMN and config.split.column is None:
        yield Conflict(paths, f"expected `split.column` with strategy {strategy}, got none; name the column")
    if strategy == "folders" and config.data.tabular is not None:
        yield Conflict((paths[0], "data.tabular"), "expected any strategy but folders for a table, got folders")
    task, source = _task(config)
    if strategy in ("stratified", "group_stratified") and task == "regression":
        fit = "group" if strategy == "group_stratified" else "random"
        message = f"expected {fit} or another without classes for regression, got {strategy} (`{source}` says so)"
        yield Conflict((paths[0], source), message)


def _members(config: Config, given: Given) -> Iterator[Conflict]:
    training, folds, strategy = config.training, fold_count(config), config.split.strategy
    if folds == 1:
        yield Conflict(("split.folds",), "expected 2 or more, or 0 for none, got 1; it would hold out all rows")
    if folds and strategy in ("column", "folders", "time"):
        message = f"expected strategy random, stratified, group or group_stratified with folds, got {strategy}"
        yield Conflict(("split.folds", "split.strategy"), message)
    if training.seeds and (folds or training.members > 1):
        other = "split.folds" if folds else "training.members"
        message = f"expected no `{other}` with seeds, which only tell how far single models differ; remove one"
        yield Conflict(("training.seeds", other), message)
    if len(set(training.seeds)) < len(training.seeds):
        yield Conflict(("training.seeds",), "expected different seeds, got one twice; remove it")
    if "training.member_loop" in given and not (folds or training.members > 1 or training.seeds):
        message = "has no effect: expected `training.members`, `training.seeds` or `split.folds` with it; remove this"
        yield Conflict(("training.member_loop", "training.members"), message, idle=True)


def _quantiles(config: Config) -> Iterator[Conflict]:
    quantiles = config.training.quantiles
    ascending = all(low < high for low, high in pairwise(quantiles))
    if not ascending or 0.5 not in quantiles:
        listed = ", ".join(f"{quantile:g}" for quantile in quantiles)
        message = f"expected ascending numbers with 0.5, the prediction, among them, got {listed}"
        yield Conflict(("training.quantiles",), message)


def _column_roles(config: Config, given: Given, section: str, data: TabularData | ImageData) -> Iterator[Conflict]:
    roles: list[tuple[str, str | None]] = [(f"{section}.target_column", name) for name in target_columns(data)]
    roles += [(f"{section}.{key}", getattr(data, key)) for key in ("weight_column", "id_column")]
    if isinstance(data, ImageData) and data.image_column != data.id_column:  # rows may be named by their path
        roles.append((f"{section}.image_column", data.image_column))
    if isinstance(data, TabularData) and data.images is not None:
        roles += [(f"{section}.images.columns", name) for name in data.images.columns]
    roles.append(("split.column", config.split.column))
    used = [(path, name) for path, name in roles if name is not None]
    for (first, name), (second, other) in combinations(used, 2):
        if name == other:
            yield Conflict((second, first), f"expected another column than {first}, got {name!r} for both")
    for path, name in used:
        if name in data.ignore_columns and not path.endswith(("id_column", "split.column")):
            yield Conflict((f"{section}.ignore_columns", path), f"expected columns without a use, got {name!r}: {path}")


def _csv_only(config: Config, given: Given, section: str, data: TabularData | ImageData) -> Iterator[Conflict]:
    if section == "data.tabular" or is_csv(data.path):
        return
    usual = {"image_column": "image", "target_column": "label"}  # a list of labels is refused by `_labels`
    idle = [key for key in ("id_column", "ignore_columns", "weight_column") if getattr(data, key)]
    idle += [key for key, name in usual.items() if isinstance(getattr(data, key), str) and getattr(data, key) != name]
    for key in idle:
        if f"{section}.{key}" in given:
            message = f"has no effect: expected a .csv file as `{section}.path` with it, got {data.path}; remove this"
            yield Conflict((f"{section}.{key}", f"{section}.path"), message, idle=True)


def _task(config: Config) -> tuple[str | None, str]:
    """Return the task as far as the config tells, and the key that tells it."""
    for kind, data in (("tabular", config.data.tabular), ("image", config.data.image)):
        if data is not None and isinstance(data.target_column, tuple):
            return "multilabel", f"data.{kind}.target_column"
    for kind, data in (("tabular", config.data.tabular), ("image", config.data.image)):
        if data is not None and data.task is not UNSET:
            return data.task, f"data.{kind}.task"
    if config.data.image is not None and not is_csv(config.data.image.path):
        return "classification", "data.image.path"  # folders and idx files hold classes
    for task, losses in _LOSSES.items():
        if config.training.loss in losses:
            return task, "training.loss"
    return None, "training.loss"


def _task_options(config: Config, given: Given, section: str, data: TabularData | ImageData) -> Iterator[Conflict]:
    task, source = _task(config)
    loss = config.training.loss
    if task is not None and loss is not UNSET and loss not in _LOSSES[task]:
        options = ", ".join(_LOSSES[task])
        yield Conflict(("training.loss", source), f"expected one of {options} for {task} (`{source}`), got {loss}")
    if task != "regression":
        return
    classes_only = (
        (f"{section}.positive_class", data.positive_class is not None),
        ("training.class_weights", config.training.class_weights != "none"),
        ("training.threshold", config.training.threshold != "none"),
        ("training.abstain_below", config.training.abstain_below is not None),
        ("training.label_smoothing", "training.label_smoothing" in given and loss is UNSET),
    )
    message = f"has no effect: expected a classification task with it, got {task} (`{source}`)"
    yield from (Conflict((path, source), message) for path, used in classes_only if used)


def _labels(config: Config, given: Given, section: str, data: TabularData | ImageData) -> Iterator[Conflict]:
    """Yield what cannot be with several labels, or with the task that is said beside them."""
    target, task = f"{section}.target_column", f"{section}.task"
    several, training = isinstance(data.target_column, tuple), config.training
    if data.task is not UNSET and several != (data.task == "multilabel"):
        if several:
            yield Conflict((task, target), f"expected multilabel with a list of columns, got {data.task}; remove it")
        else:
            told = "expected a list of columns in `target_column`, one for each label, got one column"
            yield Conflict((task, target), f"multilabel {told}; list them, or set task: classification")
    if not several:
        return
    if isinstance(data, ImageData) and not is_csv(data.path):
        told = f"expected a .csv file as `{section}.path` with a list of columns, got {data.path}"
        yield Conflict((target, f"{section}.path"), f"{told}; list the images in one with a column for each label")
    if "training.label_smoothing" in given and training.loss is UNSET:
        told = "has no effect: expected `training.loss: cross_entropy` with it, which is for one class a row; remove it"
        yield Conflict(("training.label_smoothing", target), told, idle=True)
    if training.abstain_below is not None and training.abstain_below <= 0.5:
        told = "expected a number above 0.5, as yes or no of a label is at least that probable"
        yield Conflict(("training.abstain_below", target), f"{told}, got {training.abstain_below:g}")


def _class_weights(config: Config) -> Iterator[Conflict]:
    weights = config.training.class_weights
    if isinstance(weights, str):
        return
    counts = Counter(weight.label for weight in weights)
    for label in (label for label, count in counts.items() if count > 1):
        yield Conflict(("training.class_weights",), f"expected each label once, got {label[:60]!r} twice; remove one")


def _model_of_data(config: Config, given: Given, section: str, data: TabularData | ImageData) -> Iterator[Conflict]:
    images = table_images(config)
    kind = "multimodal" if images else "tabular" if isinstance(data, TabularData) else "vision"
    section, model = "data.tabular.images" if images else section, config.model
    if model.type is not UNSET and model.type != kind:
        yield Conflict(("model.type", section), f"expected {kind} for {section}, got {model.type}")
    if "preset" in given and config.preset != "best" and model.name is not UNSET:
        told = f"has no effect: expected no `model.name` with {config.preset}, which only chooses it; remove one"
        yield Conflict(("preset", "model.name"), told, idle=True)
    if images is not None:
        yield from augmentation_conflicts(images.augmentation, "data.tabular.images.augmentation", given)
    if images is None:
        for path in sorted(path for path in given if path.startswith("model.fusion.")):
            told = f"has no effect: expected `data.tabular.images` with it, got {section} without; remove this"
            yield Conflict((path, section), told, idle=True)
    elif "model.fusion.pooling" in given and len(images.columns) == 1:
        told = "has no effect: expected several columns of images to pool, got one; remove this"
        yield Conflict(("model.fusion.pooling", f"{section}.columns"), told, idle=True)
    if images is not None and model.fusion.own_heads is not UNSET:
        for trunk, count in Counter(model.fusion.own_heads).items():
            if count > 1:
                told = f"expected each trunk once, got '{trunk}' {count} times; remove all but one"
                yield Conflict(("model.fusion.own_heads",), told)
    if kind != "tabular" and "preset" in given:
        told = f"has no effect: expected a table, whose network it chooses, got {section}; name one with `model.name`"
        yield Conflict(("preset", section), told, idle=True)
    name = ("realmlp" if kind == "tabular" else "resnet") if model.name is UNSET else model.name
    if (name in TABLE_NETWORKS) != (kind == "tabular"):
        vision = "resnet, resnet18 to resnet50 (or with d), [tf_]efficientnet_b0 to b4, airbench or airbench_s"
        options = "realmlp, realmlp_s, tabm or mlp" if kind == "tabular" else vision
        if images:
            options += " (the trunk of the images)"
        yield Conflict(("model.name", section), f"expected {options} for {section}, got {name}")
        return
    fields = OPTIONS[name]
    for path in sorted(given):
        parent, _, field = path.rpartition(".")
        if parent == "model.architecture" and field not in fields and hasattr(model.architecture, field):
            yield Conflict(
                (path, "model.name", section), f"{name} has no such option; it takes {', '.join(fields)}", idle=True
            )


def _monitor(config: Config, given: Given, section: str, data: TabularData | ImageData) -> Iterator[Conflict]:
    stopping, save_best = config.training.early_stopping, config.training.checkpoint.save_best
    path, enabled = f"{_STOPPING}.monitor", f"{_STOPPING}.enabled"
    dealt = config.split.strategy not in ("column", "folders")
    unvalidated = data.validation_split == 0.0 and dealt and not fold_count(config)
    monitor = stopping.monitor
    if monitor is UNSET:
        if stopping.enabled is True and unvalidated:
            message = "expected validation rows to stop on, got `validation_split: 0`; raise it or monitor train_loss"
            yield Conflict((enabled, f"{section}.validation_split", path), message)
        return
    if not monitor:  # a resolved config monitors nothing where there is nothing to monitor
        if path in given:
            yield Conflict((path,), _unknown_monitor(monitor), idle=True)
        return
    where, _, metric = monitor.partition("_")
    if where not in ("val", "train") or metric not in METRIC_NAMES:
        yield Conflict((path,), _unknown_monitor(monitor))
        return
    task, source = _task(config)
    if task is not None and metric not in _METRICS[task]:
        options = ", ".join(_METRICS[task])
        yield Conflict((path, source), f"expected a metric of {task} (`{source}`): {options}; got {metric}")
    if path not in given:
        return
    if stopping.enabled is False and not save_best:
        message = (
            f"has no effect: expected `{enabled}: true` or `training.checkpoint.save_best: true` with it, got neither"
        )
        yield Conflict((path, enabled, "training.checkpoint.save_best"), message, idle=True)
    elif where == "val" and unvalidated:
        message = f"expected train_{metric} where `{section}.validation_split` is 0, got {monitor}; or raise the share"
        yield Conflict((path, f"{section}.validation_split"), message)


def _unknown_monitor(monitor: str) -> str:
    options = [f"{where}_{metric}" for where in ("val", "train") for metric in METRIC_NAMES]
    metric = monitor.partition("_")[2]
    near = f"; did you mean 'val_{metric}'?" if metric in METRIC_NAMES else did_you_mean(monitor[:60].lower(), options)
    return f"expected val_X or train_X with X one of {', '.join(METRIC_NAMES)}; got {monitor[:60]!r}{near}"
