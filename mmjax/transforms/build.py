"""From a resolved config and a schema to the one Transform of a model, and to the Augment of its training."""

from typing import assert_never

from msgspec import UNSET

from mmjax.config import (
    Augmentation,
    Config,
    Preprocessing,
    RowAugmentation,
    Scaler,
    fold_count,
    image_settings,
)
from mmjax.schema import Schema
from mmjax.transforms.augment import (
    Augment,
    alternating_flip,
    chain_augments,
    color,
    flip,
    rotate,
    shift,
    vertical_flip,
)
from mmjax.transforms.base import Transform, chain, identity
from mmjax.transforms.boxes import erase, random_resized_crop, resize
from mmjax.transforms.image import scale_image
from mmjax.transforms.mix import mix
from mmjax.transforms.piecewise import piecewise_codes, piecewise_linear
from mmjax.transforms.tabular import (
    cyclic_dates,
    impute,
    mark_columns,
    min_max,
    one_hot,
    onehot_width,
    only_seen,
    ordinal,
    robust_scale,
    scaled_one_hot,
    standardize,
)
from mmjax.transforms.trivial_augment import trivial_augment


def build_transform(config: Config, schema: Schema) -> Transform:
    """Return the Transform of a resolved config: dates, gaps, scale, categories of tables; scaled pixels of images."""
    parts, images = [], image_settings(config)
    if config.data.tabular is not None:
        if fold_count(config) and schema.cardinalities:
            parts.append(only_seen(schema.cardinalities))
        parts += [mark_columns()] if images else []
        apart = config.model.name == "tabm"
        parts.append(table_transform(config.data.tabular.preprocessing, schema, codes_apart=apart))
    if images is not None:
        mean, std = images.channel_mean, images.channel_std
        fixed = None if mean is None or std is None else (mean, std)
        parts.append(scale_image(normalize=images.augmentation.normalize, fixed=fixed))
    return chain(*parts)


def build_augment(
    augmentation: RowAugmentation, *, size: tuple[int, int] | None = None, seed: int = 0
) -> Augment | None:
    """Return the Augments the config asks for, as one; None where it asks for none.

    `size` is that of training, height and width in pixels; None: that of the images. What a recipe decides, `shift`,
    is none where it is UNSET. An alternating flip goes by `seed`.
    """
    share = 0.0 if augmentation.shift is UNSET else augmentation.shift
    crop, flips = augmentation.random_resized_crop, augmentation.horizontal_flip
    pieces = []
    if crop is not None:
        pieces.append(random_resized_crop(crop, augmentation.crop_ratio, size))
    elif size is not None:
        pieces.append(resize(size))
    if flips:
        pieces.append(alternating_flip(seed) if flips == "alternating" else flip())
    if augmentation.vertical_flip:
        pieces.append(vertical_flip())
    if share > 0:
        pieces.append(shift(share))
    if augmentation.rotation_range > 0:
        pieces.append(rotate(augmentation.rotation_range))
    if augmentation.color > 0:
        pieces.append(color(augmentation.color))
    if augmentation.trivial_augment:
        pieces.append(trivial_augment())
    if augmentation.random_erasing > 0:
        pieces.append(erase(augmentation.random_erasing))
    if isinstance(augmentation, Augmentation):  # images beside columns are not mixed, as the columns are not
        mixup, cutmix, probability = augmentation.mixup_alpha, augmentation.cutmix_alpha, augmentation.mix_probability
        if (mixup or cutmix) and probability > 0:
            pieces.append(mix(mixup=mixup, cutmix=cutmix, probability=probability))
    return chain_augments(*pieces) if pieces else None


STAGES = 4
"""Sizes of progressive resizing: each is a program to compile."""


def progressive_sizes(
    first: tuple[int, int], last: tuple[int, int], epochs: int
) -> tuple[tuple[int, tuple[int, int]], ...]:
    """Return (last epoch, size) of up to 4 stages of equal length, from the `first` size to the `last`.

    Sides between them are whole multiples of 4 px, or those of an end. Howard 2018 (fast.ai's DAWNBench entry);
    FFCV's ResNet recipes.

    >>> progressive_sizes((32, 32), (64, 64), 8)
    ((2, (32, 32)), (4, (44, 44)), (6, (52, 52)), (8, (64, 64)))
    """
    stages = min(STAGES, epochs)
    ends: dict[tuple[int, int], int] = {}
    for index in range(stages):
        part = index / (stages - 1) if stages > 1 else 1.0
        sides = zip(first, last, strict=True)
        between = tuple(min(max(4 * round((low + (high - low) * part) / 4), low), high) for low, high in sides)
        size = first if part == 0 else last if part == 1 else (between[0], between[1])
        ends[size] = round(epochs * (index + 1) / stages)
    return tuple((end, size) for size, end in ends.items())


def table_transform(preprocessing: Preprocessing, schema: Schema, *, codes_apart: bool = False) -> Transform:
    """Return the Transform of a table; steps without columns to work on are left out.

    `numeric` then holds the numeric columns and the elapsed days of each date; `dense` the sines and cosines of dates,
    piecewise-linear codes, one missing-indicator for each column of `numeric`, and encoded categories; `category` stays
    for embeddings. With `codes_apart` the piecewise-linear codes are in `codes`, see `piecewise_codes`.
    """
    strategy, scaler = preprocessing.handle_missing, preprocessing.scaler
    assert strategy is not UNSET
    assert scaler is not UNSET
    assert preprocessing.numeric_bins is not UNSET
    steps = [cyclic_dates(schema.cyclic_features)] if schema.cyclic_features else []
    if schema.numeric_features:
        code = piecewise_codes if codes_apart else piecewise_linear
        steps += [code(preprocessing.numeric_bins)] if preprocessing.numeric_bins else []
        steps.append(impute(strategy, _fill_values(preprocessing, schema)))
        steps += [_scale(scaler)] if preprocessing.normalize else []
    if schema.cardinalities:
        steps.append(_encode(preprocessing, schema.cardinalities))
    return chain(*steps)


def embedded_cardinalities(preprocessing: Preprocessing, schema: Schema) -> tuple[int, ...]:
    """Return the cardinalities of the category columns that the Transform leaves for embeddings."""
    if preprocessing.categorical_encoding != "onehot_or_embedding":
        return schema.cardinalities
    assert preprocessing.onehot_categories is not UNSET
    return tuple(n for n in schema.cardinalities if n > preprocessing.onehot_categories + 1)


def onehot_widths(preprocessing: Preprocessing, schema: Schema) -> tuple[int, ...]:
    """Return how many columns of `dense` each category column has that is one-hot; they are the last ones of it."""
    match preprocessing.categorical_encoding:
        case "onehot":
            return schema.cardinalities
        case "onehot_or_embedding":
            assert preprocessing.onehot_categories is not UNSET
            few = [n for n in schema.cardinalities if n <= preprocessing.onehot_categories + 1]
            return tuple(onehot_width(n) for n in few)
        case _:
            return ()


def _fill_values(preprocessing: Preprocessing, schema: Schema) -> tuple[float, ...]:
    """Return `fill_value` as the batch holds each column, less its offset; a missing date gets its offset's day."""
    numbers = tuple(preprocessing.fill_value - column.offset for column in schema.of_kind("numeric"))
    return numbers + (0.0,) * len(schema.of_kind("datetime"))


def _scale(scaler: Scaler) -> Transform:
    match scaler:
        case "standard":
            return standardize()
        case "minmax":
            return min_max()
        case "robust":
            return robust_scale()
        case _:
            assert_never(scaler)


def _encode(preprocessing: Preprocessing, cardinalities: tuple[int, ...]) -> Transform:
    encoding, most = preprocessing.categorical_encoding, preprocessing.onehot_categories
    assert encoding is not UNSET
    match encoding:
        case "onehot":
            return one_hot(cardinalities)
        case "ordinal":
            return ordinal(cardinalities)
        case "embedding":
            return identity()
        case "onehot_or_embedding":
            assert most is not UNSET
            return scaled_one_hot(cardinalities, most)
        case _:
            assert_never(encoding)
