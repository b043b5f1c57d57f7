"""TrivialAugment: one operation for each image, drawn from a list of 14, its strength drawn too. Nothing to tune.

The list and strengths are those of torchvision's `TrivialAugmentWide`, which works with Pillow's operations. All images
go through one form of each kind, by a matrix for geometry and a mix with another image for colour: `lax.switch` over a
batch would compute all operations anyway. Only `equalize`, whose histogram is dear, looks at the images that want it.
"""

import jax
import jax.numpy as jnp

from mmjax.transforms.augment import Augment, gather_pixels, grey, on_images, per_image

OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
"""In torchvision's order; an operation is its index."""

STRONGEST = 30
"""Strengths are 0 to this, all alike probable."""
SHEAR, TRANSLATE_PX, ROTATE_DEGREES, MIX = 0.99, 32.0, 135.0, 0.99
"""Of the strongest; either sign."""
EQUALIZED_AT_ONCE = 8
"""Images that `equalize` takes together: of 64 images about 5 want it."""


def trivial_augment() -> Augment:
    """Return the Augment that changes each image by one operation of a random strength.

    Müller & Hutter 2021 (arXiv 2103.10158), the wide space, as in torchvision: nearest pixels, black outside of the
    image. Translations are at most 32 px, and at most half the side, which is less below 64 px.
    """

    def change(key: jax.Array, image: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 3)
        operation = jax.random.randint(keys[0], image.shape[:2], 0, len(OPERATIONS))
        strength = jax.random.randint(keys[1], image.shape[:2], 0, STRONGEST + 1)
        sign = jax.random.rademacher(keys[2], image.shape[:2], jnp.float32)
        return operate(image, operation, strength, sign)

    return on_images(change)


def operate(image: jax.Array, operation: jax.Array, strength: jax.Array, sign: jax.Array) -> jax.Array:
    """Return `f32[B, I, H, W, 3]`: each of `image` (0..255) changed by its operation i32[B, I], an index of OPERATIONS.

    `strength` i32[B, I] is 0 to STRONGEST, `sign` f32[B, I] is 1 or -1 where an operation has two directions.
    """
    image = image.astype(jnp.float32)
    share = strength / STRONGEST
    image = jax.lax.optimization_barrier(_move(image, operation, share * sign))
    image = _mix(image, operation, 1 + MIX * share * sign)
    image = _posterize_or_solarize(image, operation, strength, share)
    image = jnp.where(_is(operation, "autocontrast"), _autocontrast(image), image)
    return _equalize(jax.lax.optimization_barrier(image), (operation == OPERATIONS.index("equalize")).reshape(-1))


def _is(operation: jax.Array, name: str) -> jax.Array:
    return per_image(operation == OPERATIONS.index(name))


def _move(image: jax.Array, operation: jax.Array, amount: jax.Array) -> jax.Array:
    """Shear about the upper left corner, translate by whole pixels, or rotate about the middle; others stay."""
    height, width = image.shape[2:4]

    def only(name: str, value: jax.Array | float) -> jax.Array:
        return jnp.where(operation == OPERATIONS.index(name), value, 0.0)

    angle = jnp.deg2rad(only("rotate", ROTATE_DEGREES) * amount)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    across = only("translate_x", jnp.trunc(min(TRANSLATE_PX, width / 2) * amount))
    down = only("translate_y", jnp.trunc(min(TRANSLATE_PX, height / 2) * amount))
    middle_x, middle_y = width / 2, height / 2
    x_by_x, x_by_y = cos, only("shear_x", SHEAR * amount) - sin
    y_by_x, y_by_y = only("shear_y", SHEAR * amount) + sin, cos
    x_by_1 = middle_x - cos * middle_x + sin * middle_y - across
    y_by_1 = middle_y - sin * middle_x - cos * middle_y - down
    return sample_affine(image, (x_by_x, x_by_y, x_by_1, y_by_x, y_by_y, y_by_1))


def sample_affine(image: jax.Array, matrix: tuple[jax.Array, ...]) -> jax.Array:
    """Return each of `image [B, I, H, W, 3]` with its pixel (x, y) taken from (a x + b y + c, d x + e y + f).

    `matrix` is a to f, f32[B, I] each; x and y are the middles of pixels, as in Pillow's `Image.transform`. The nearest
    pixel is taken; outside of the image it is black.
    """
    height, width = image.shape[2:4]
    a, b, c, d, e, f = (value[:, :, None, None] for value in matrix)
    x, y = jnp.arange(width)[None, None, None, :] + 0.5, jnp.arange(height)[None, None, :, None] + 0.5
    from_x = jnp.floor(a * x + b * y + c).astype(jnp.int32)
    from_y = jnp.floor(d * x + e * y + f).astype(jnp.int32)
    there = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    return jnp.where(there[..., None], gather_pixels(image, from_y * width + from_x), 0.0)


def _mix(image: jax.Array, operation: jax.Array, factor: jax.Array) -> jax.Array:
    """Brightness, colour, contrast and sharpness: `f * image + (1 - f) * other`, clipped; others stay."""
    grey_image = grey(image)
    mean_grey = jnp.floor(grey_image.mean((2, 3), keepdims=True) + 0.5)
    other = jnp.where(_is(operation, "color"), grey_image, 0.0)  # of brightness it is black
    other = jnp.where(_is(operation, "contrast"), mean_grey, other)
    other = jnp.where(_is(operation, "sharpness"), _smooth(image), other)
    chosen = (operation >= OPERATIONS.index("brightness")) & (operation <= OPERATIONS.index("sharpness"))
    factor = per_image(factor)
    return jnp.where(per_image(chosen), jnp.clip(factor * image + (1 - factor) * other, 0.0, 255.0), image)


def _smooth(image: jax.Array) -> jax.Array:
    """Return images blurred by Pillow's SMOOTH: the middle counts 5, its 8 neighbours 1; border pixels stay."""
    if min(image.shape[2:4]) < 3:
        return image
    rows = image[:, :, :-2] + image[:, :, 1:-1] + image[:, :, 2:]
    block = rows[:, :, :, :-2] + rows[:, :, :, 1:-1] + rows[:, :, :, 2:]
    smooth = jnp.round((block + 4 * image[:, :, 1:-1, 1:-1]) / 13)
    return image.at[:, :, 1:-1, 1:-1].set(smooth)


def _posterize_or_solarize(image: jax.Array, operation: jax.Array, strength: jax.Array, share: jax.Array) -> jax.Array:
    """Keep 8 to 2 bits of each value, or turn values from 255 to 0 upwards into their negative; others stay."""
    step = per_image(jnp.exp2(jnp.round(strength / (STRONGEST / 6))))
    image = jnp.where(_is(operation, "posterize"), jnp.floor(image / step) * step, image)
    turned = _is(operation, "solarize") & (image >= per_image(255.0 * (1 - share)))
    return jnp.where(turned, 255.0 - image, image)


def _autocontrast(image: jax.Array) -> jax.Array:
    """Return images whose channels reach from 0 to 255; a channel of one value stays."""
    low, high = image.min((2, 3), keepdims=True), image.max((2, 3), keepdims=True)
    return jnp.where(high > low, (image - low) * (255.0 / jnp.where(high > low, high - low, 1.0)), image)


def _equalize(image: jax.Array, chosen: jax.Array) -> jax.Array:
    """Return images of which those of `chosen` bool[B * I] have evenly filled histograms, some at a time."""
    flat = image.reshape(-1, *image.shape[2:])
    size = min(EQUALIZED_AT_ONCE, len(flat))
    if not flat.size:
        return image
    # Filled up with images that are not there: reading one gives the last, writing one does nothing.
    order = jnp.concatenate([jnp.argsort(~chosen, stable=True), jnp.full(size, len(flat))])
    rounds = (chosen.sum() + size - 1) // size

    def some(index: jax.Array, images: jax.Array) -> jax.Array:
        at = jax.lax.dynamic_slice(order, (index * size,), (size,))
        own, wanted = images.at[at].get(mode="clip"), chosen.at[at].get(mode="clip")
        return images.at[at].set(jnp.where(wanted[:, None, None, None], equalized(own), own), mode="drop")

    return jax.lax.fori_loop(0, rounds, some, flat).reshape(image.shape)


def equalized(image: jax.Array) -> jax.Array:
    """Return `f32[N, H, W, 3]` with the histogram of each channel of whole values 0..255 evened out, as by Pillow."""
    count, pixels = len(image), image.shape[1] * image.shape[2]
    values = jnp.round(image).astype(jnp.int32)
    bins = 256 * (3 * jnp.arange(count)[:, None, None, None] + jnp.arange(3)[None, None, None, :]) + values
    histogram = jnp.zeros(count * 3 * 256, jnp.int32).at[bins].add(1).reshape(count, 3, 256)
    largest = 255 - (histogram[:, :, ::-1] > 0).argmax(axis=-1)
    last = jnp.take_along_axis(histogram, largest[:, :, None], axis=-1)
    step = (pixels - last) // 255
    below = jnp.cumsum(histogram, axis=-1) - histogram
    table = jnp.where(step > 0, jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255), jnp.arange(256))
    return table.reshape(-1)[bins].astype(jnp.float32)
