"""Augments: random changes of training images, pure functions of a key; another type than Transform, on purpose.

Each works on `image` [B, I, H, W, 3] (u8 or f32, 0..255), before any Transform, and gives f32 in 0..255. Each image of
each row draws its own change, from the key alone: never from the pixels of another. Every other field is untouched,
and a batch without images is unchanged. Two kinds are exceptions: `transforms.mix` mixes rows and their answers on
purpose, and `alternating_flip` goes by row and epoch, not by the key.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mmjax.errors import ConfigError
from mmjax.schema import Batch

Augment = Callable[[jax.Array, Batch], Batch]
"""`(key, Batch) -> Batch`, traceable."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey value (ITU-R BT.601)."""


def chain_augments(*augments: Augment) -> Augment:
    """Return the Augments as one, applied left to right, each with a key of its own."""

    def apply(key: jax.Array, batch: Batch) -> Batch:
        for index, augment in enumerate(augments):
            # Without the barrier XLA computes each piece again for every use in the next: 3 times slower at 96 px.
            batch = jax.lax.optimization_barrier(augment(jax.random.fold_in(key, index), batch))
        return batch

    return apply


def flip() -> Augment:
    """Return the Augment that mirrors left and right with probability one half."""

    def change(key: jax.Array, image: jax.Array) -> jax.Array:
        return mirror(image, jax.random.bernoulli(key, 0.5, image.shape[:2]))

    return on_images(change)


def vertical_flip() -> Augment:
    """Return the Augment that mirrors top and bottom with probability one half."""

    def change(key: jax.Array, image: jax.Array) -> jax.Array:
        turned = jax.random.bernoulli(key, 0.5, image.shape[:2])
        return jnp.where(per_image(turned), image[:, :, ::-1], image)

    return on_images(change)


def alternating_flip(seed: int) -> Augment:
    """Return the Augment that mirrors half of the images, left and right, in one epoch and the other half in the next.

    So each image is seen both ways in any two epochs, which learns faster than chance does (Jordan 2024, "94% on
    CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv 2404.00498, section 3.6). Which half an image is in follows from
    `seed` and the row: the batch must hold `row` i32[B], the row's number in the data, and `epoch` i32[B], counted
    from 0 (`training.steps` gives them). Members of an ensemble mirror alike.
    """

    def apply(key: jax.Array, batch: Batch) -> Batch:
        del key
        if "image" not in batch:
            return batch
        image = jnp.asarray(batch["image"]).astype(jnp.float32)
        own = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(jnp.asarray(batch["row"]))
        first = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, image.shape[1:2]))(own)
        odd = (jnp.asarray(batch["epoch"]) % 2 == 1)[:, None]
        return {**batch, "image": mirror(image, first ^ odd)}

    return apply


def mirror(image: jax.Array, mirrored: jax.Array) -> jax.Array:
    """Return `image [B, I, H, W, 3]`, left and right changed where `mirrored` bool[B, I]."""
    return jnp.where(per_image(mirrored), image[:, :, :, ::-1], image)


def rotate(degrees: float) -> Augment:
    """Return the Augment that rotates about the centre by an angle uniform in `-degrees..degrees`."""

    def change(key: jax.Array, image: jax.Array) -> jax.Array:
        return rotate_images(image, jax.random.uniform(key, image.shape[:2], minval=-degrees, maxval=degrees))

    return on_images(change) if degrees > 0 else on_images(unchanged)


def shift(fraction: float) -> Augment:
    """Return the Augment that moves each image by whole pixels, uniform in up to `fraction` of each side.

    What the move uncovers is the image reflected at its border, as padding by reflection and cropping at random give.
    ConfigError for a fraction outside 0 to 1.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ConfigError(f"shift: expected a share of each side, from 0 to 1, got {fraction:g}")

    def change(key: jax.Array, image: jax.Array) -> jax.Array:
        key_down, key_across = jax.random.split(key)
        limits = round(fraction * image.shape[2]), round(fraction * image.shape[3])
        down = jax.random.randint(key_down, image.shape[:2], -limits[0], limits[0] + 1)
        across = jax.random.randint(key_across, image.shape[:2], -limits[1], limits[1] + 1)
        return shift_images(image, down, across)

    return on_images(change) if fraction > 0 else on_images(unchanged)


def color(strength: float) -> Augment:
    """Return the Augment that changes brightness, contrast and saturation, in this order, each clipped to 0..255.

    Each is a mix, `f * image + (1 - f) * other` with f uniform in `1 - strength..1 + strength`: with black, with the
    mean grey of the image, and with each pixel's grey.
    """

    def change(key: jax.Array, image: jax.Array) -> jax.Array:
        factors = jax.random.uniform(key, (3, *image.shape[:2]), minval=1 - strength, maxval=1 + strength)
        brightness, contrast, saturation = (per_image(factor) for factor in factors)
        image = jnp.clip(brightness * image, 0.0, 255.0)
        mean_grey = grey(image.mean((2, 3), keepdims=True))
        image = jnp.clip(contrast * image + (1 - contrast) * mean_grey, 0.0, 255.0)
        return jnp.clip(saturation * image + (1 - saturation) * grey(image), 0.0, 255.0)

    return on_images(change) if strength > 0 else on_images(unchanged)


def shift_images(image: jax.Array, down: jax.Array, across: jax.Array) -> jax.Array:
    """Return `image [B, I, H, W, 3]` moved by `down` and `across` (i32[B, I], pixels), reflected at its borders."""
    rows = reflect(jnp.arange(image.shape[2])[None, None, :] - down[:, :, None], image.shape[2])
    columns = reflect(jnp.arange(image.shape[3])[None, None, :] - across[:, :, None], image.shape[3])
    flat = rows[:, :, :, None] * image.shape[3] + columns[:, :, None, :]
    return gather_pixels(image, flat)


def rotate_images(image: jax.Array, degrees: jax.Array) -> jax.Array:
    """Return `f32[B, I, H, W, 3]` rotated counter-clockwise about the centre by `degrees` f32[B, I].

    Bilinear; outside of the image its nearest border pixel continues.
    """
    height, width = image.shape[2:4]
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    y = (jnp.arange(height) - middle_y)[None, None, :, None]
    x = (jnp.arange(width) - middle_x)[None, None, None, :]
    cos, sin = (f(jnp.deg2rad(degrees))[:, :, None, None] for f in (jnp.cos, jnp.sin))
    from_y = jnp.clip(cos * y + sin * x + middle_y, 0, height - 1)
    from_x = jnp.clip(cos * x - sin * y + middle_x, 0, width - 1)
    top = jnp.minimum(jnp.floor(from_y).astype(jnp.int32), max(height - 2, 0))
    left = jnp.minimum(jnp.floor(from_x).astype(jnp.int32), max(width - 2, 0))
    below, right = (from_y - top)[..., None], (from_x - left)[..., None]
    step_y, step_x = (width if height > 1 else 0), (1 if width > 1 else 0)
    corner = top * width + left
    upper = (1 - right) * gather_pixels(image, corner) + right * gather_pixels(image, corner + step_x)
    lower = (1 - right) * gather_pixels(image, corner + step_y) + right * gather_pixels(image, corner + step_y + step_x)
    return (1 - below) * upper + below * lower


def gather_pixels(image: jax.Array, index: jax.Array) -> jax.Array:
    """Return the pixels of `image [B, I, H, W, 3]` at `index` i32[B, I, H, W], counted row by row in each image."""
    batch, count, height, width, channels = image.shape
    pixels = image.reshape(batch * count, height * width, channels)
    taken = jnp.take_along_axis(pixels, index.reshape(batch * count, height * width, 1), axis=1, mode="clip")
    return taken.reshape(image.shape)


def reflect(index: jax.Array, size: int) -> jax.Array:
    """Return the index in 0..size - 1 found at `index` when a row is mirrored at its ends, which are not repeated.

    >>> reflect(jnp.arange(-3, 7), 4).tolist()
    [3, 2, 1, 0, 1, 2, 3, 2, 1, 0]
    """
    if size == 1:
        return jnp.zeros_like(index)
    folded = jnp.abs(index) % (2 * size - 2)
    return jnp.minimum(folded, 2 * size - 2 - folded)


def grey(image: jax.Array) -> jax.Array:
    """Return `f32[B, I, H, W, 1]`, the grey value of each pixel."""
    red, green, blue = LUMA
    return red * image[..., 0:1] + green * image[..., 1:2] + blue * image[..., 2:3]


def per_image(values: jax.Array) -> jax.Array:
    """Return `[B, I]` as `[B, I, 1, 1, 1]`, to stand beside images."""
    return values[:, :, None, None, None]


def unchanged(key: jax.Array, image: jax.Array) -> jax.Array:
    """Return the image."""
    del key
    return image


def on_images(change: Callable[[jax.Array, jax.Array], jax.Array]) -> Augment:
    """Return the Augment that applies `change(key, image)` to the images of a batch and gives them as f32."""

    def apply(key: jax.Array, batch: Batch) -> Batch:
        if "image" not in batch:
            return batch
        return {**batch, "image": change(key, jnp.asarray(batch["image"])).astype(jnp.float32)}

    return apply
