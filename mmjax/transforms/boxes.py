"""Augments that choose a rectangle in each image: random resized crop, random erasing; and resizing itself.

A crop and its resampling are two small matrices for each image, so that they run as products of matrices on every
backend, and downsampling is antialiased.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.transforms.augment import Augment, on_images, per_image, unchanged

TRIES = 10
"""Boxes drawn for each image; the first that fits is taken, as in torchvision."""

ERASED_AREA = (0.02, 0.33)
"""Share of the image that an erased box covers (Zhong et al. 2017; torchvision's defaults)."""
ERASED_RATIO = (0.3, 3.3)
"""Sides of an erased box, the one to the other."""


class Boxes(NamedTuple):
    """One rectangle in each image, in whole pixels, i32[B, I] each."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array
    fits: jax.Array
    """bool[B, I]: False where no box that was drawn fits; the others are those of the last one then."""


def random_resized_crop(
    scale: tuple[float, float], ratio: tuple[float, float], size: tuple[int, int] | None = None
) -> Augment:
    """Return the Augment that cuts a box out of each image and resamples it to `size`, height and width in pixels.

    None: to the size of the images.
    The box covers a share of the image uniform in `scale`; its width over its height is log-uniform in `ratio`
    (Szegedy et al. 2014, arXiv 1409.4842; the rule of torchvision's `RandomResizedCrop`: ten boxes are drawn, and where
    none fits, the largest in the middle whose ratio is in the range).
    """

    def change(key: jax.Array, image: jax.Array) -> jax.Array:
        whole = image.shape[2], image.shape[3]
        boxes = draw_boxes(key, image.shape[:2], whole, scale, ratio)
        return resample(image, _or_middle(boxes, whole, ratio), size or whole)

    return on_images(change)


def resize(size: tuple[int, int]) -> Augment:
    """Return the Augment, without any chance in it, that brings whole images to `size`, height and width in pixels.

    Training at a smaller size than that of the test saves time, and may answer better: crops show objects larger in
    training than in the test, which a larger test size makes up for (Touvron et al. 2019, "Fixing the train-test
    resolution discrepancy", arXiv 1906.06423). That is what `data.image.train_size` is for.
    """

    def change(key: jax.Array, image: jax.Array) -> jax.Array:
        del key
        return image if image.shape[2:4] == size else resample(image, _whole(image), size)

    return on_images(change)


def erase(probability: float) -> Augment:
    """Return the Augment that paints, with this probability, a box of each image in the mean colour of the image.

    Random erasing (Zhong et al. 2017, arXiv 1708.04896) with torchvision's ranges of area and ratio; there the colour
    is 0 after standardisation, the mean of all images.
    """

    def change(key: jax.Array, image: jax.Array) -> jax.Array:
        key_box, key_erased = jax.random.split(key)
        height, width = image.shape[2], image.shape[3]
        boxes = draw_boxes(key_box, image.shape[:2], (height, width), ERASED_AREA, ERASED_RATIO, smaller=True)
        erased = boxes.fits & jax.random.bernoulli(key_erased, probability, image.shape[:2])
        painted = per_image(erased) & inside(boxes, height, width)
        return jnp.where(painted, image.mean((2, 3), keepdims=True), image)

    return on_images(change) if probability > 0 else on_images(unchanged)


def draw_boxes(
    key: jax.Array,
    shape: tuple[int, ...],
    whole: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    *,
    smaller: bool = False,
) -> Boxes:
    """Return a box for each image of `shape` (B, I) whose sides are `whole`; with `smaller` no side is a whole one."""
    key_area, key_ratio, key_top, key_left = jax.random.split(key, 4)
    many = (TRIES, *shape)
    area = whole[0] * whole[1] * jax.random.uniform(key_area, many, minval=scale[0], maxval=scale[1])
    low, high = jnp.log(jnp.asarray(ratio))
    across = jnp.exp(jax.random.uniform(key_ratio, many, minval=low, maxval=high))
    width = jnp.round(jnp.sqrt(area * across)).astype(jnp.int32)
    height = jnp.round(jnp.sqrt(area / across)).astype(jnp.int32)
    most = (whole[0] - 1, whole[1] - 1) if smaller else whole
    fits = (height > 0) & (height <= most[0]) & (width > 0) & (width <= most[1])
    first = fits.argmax(axis=0)[None]
    height, width = (jnp.take_along_axis(sides, first, axis=0)[0] for sides in (height, width))
    top, left = (
        jax.random.randint(key, shape, 0, jnp.maximum(side - own, 0) + 1)
        for key, side, own in ((key_top, whole[0], height), (key_left, whole[1], width))
    )
    return Boxes(top, left, height, width, fits.any(axis=0))


def inside(boxes: Boxes, height: int, width: int) -> jax.Array:
    """Return bool[B, I, H, W, 1]: which pixels lie in the boxes."""
    rows, columns = jnp.arange(height)[None, None, :], jnp.arange(width)[None, None, :]
    top, left = boxes.top[:, :, None], boxes.left[:, :, None]
    within_rows = (rows >= top) & (rows < top + boxes.height[:, :, None])
    within_columns = (columns >= left) & (columns < left + boxes.width[:, :, None])
    return (within_rows[:, :, :, None] & within_columns[:, :, None, :])[..., None]


def resample(image: jax.Array, boxes: Boxes, size: tuple[int, int]) -> jax.Array:
    """Return `f32[B, I, h, w, 3]`: the boxes of `image [B, I, H, W, 3]` at `size`, as Pillow's `resize` of a crop.

    Bilinear, with the triangle as wide as an output pixel where the box is larger than `size` (antialiased).
    """
    down = _weights(boxes.top, boxes.height, image.shape[2], size[0])
    across = _weights(boxes.left, boxes.width, image.shape[3], size[1])
    rows = jnp.einsum("bihy,biyxc->bihxc", down, image.astype(jnp.float32), precision="highest")
    return jnp.einsum("biwx,bihxc->bihwc", across, rows, precision="highest")


def _weights(start: jax.Array, length: jax.Array, source: int, size: int) -> jax.Array:
    """Return f32[B, I, size, source]: what of each pixel of a row goes into each pixel of the resampled one."""
    scale = (length / size)[:, :, None, None]
    middle = start[:, :, None, None] + (jnp.arange(size)[None, None, :, None] + 0.5) * scale
    at = jnp.arange(source)[None, None, None, :]
    weights = jnp.maximum(0.0, 1.0 - jnp.abs(at + 0.5 - middle) / jnp.maximum(scale, 1.0))
    first = start[:, :, None, None]
    weights = jnp.where((at >= first) & (at < first + length[:, :, None, None]), weights, 0.0)
    return weights / weights.sum(axis=-1, keepdims=True)


def _whole(image: jax.Array) -> Boxes:
    """Return boxes that are whole images."""
    at = jnp.zeros(image.shape[:2], jnp.int32)
    return Boxes(at, at, at + image.shape[2], at + image.shape[3], at == 0)


def _or_middle(boxes: Boxes, whole: tuple[int, int], ratio: tuple[float, float]) -> Boxes:
    """Return the boxes, and where none fits the largest one in the middle whose ratio is in the range."""
    height, width = whole
    if width < height * ratio[0]:
        height = round(width / ratio[0])
    elif width > height * ratio[1]:
        width = round(height * ratio[1])
    middle = (whole[0] - height) // 2, (whole[1] - width) // 2, height, width
    top, left, height, width = (jnp.where(boxes.fits, own, its) for own, its in zip(boxes[:4], middle, strict=True))
    return Boxes(top, left, height, width, boxes.fits)
