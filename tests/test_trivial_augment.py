"""TrivialAugment: each operation equals Pillow's, and the draw is uniform over operations, strengths and signs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage, stats

from mmjax.transforms.trivial_augment import OPERATIONS, STRONGEST, equalized, operate, trivial_augment

HEIGHT, WIDTH = 40, 48
OPERATE = jax.jit(operate)
STRENGTHS = [(strength, sign) for strength in (0, 7, 18, 30) for sign in (1, -1)]


def picture(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    """Smooth colours that clip at both ends."""
    noise = np.random.default_rng(seed).normal(0, 400, (height, width, 3))
    return np.clip(ndimage.gaussian_filter(noise, (2, 2, 0)) * 3 + 128, 0, 255).astype(np.uint8)


def of_pillow(name: str, image: np.ndarray, strength: int, sign: int) -> np.ndarray:
    """The same by Pillow, as torchvision calls it; translations by at most half the side."""
    pil, size, nearest = Image.fromarray(image), (WIDTH, HEIGHT), Image.Resampling.NEAREST
    share = strength / 30 * sign

    def affine(*matrix: float) -> Image.Image:
        return pil.transform(size, Image.Transform.AFFINE, matrix, nearest)

    made = {
        "identity": lambda: pil,
        "shear_x": lambda: affine(1, 0.99 * share, 0, 0, 1, 0),
        "shear_y": lambda: affine(1, 0, 0, 0.99 * share, 1, 0),
        "translate_x": lambda: affine(1, 0, -int(WIDTH / 2 * share), 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, -int(HEIGHT / 2 * share)),
        "rotate": lambda: pil.rotate(135 * share, nearest),
        "brightness": lambda: ImageEnhance.Brightness(pil).enhance(1 + 0.99 * share),
        "color": lambda: ImageEnhance.Color(pil).enhance(1 + 0.99 * share),
        "contrast": lambda: ImageEnhance.Contrast(pil).enhance(1 + 0.99 * share),
        "sharpness": lambda: ImageEnhance.Sharpness(pil).enhance(1 + 0.99 * share),
        "posterize": lambda: ImageOps.posterize(pil, 8 - round(strength / 5)),
        "solarize": lambda: ImageOps.solarize(pil, round(255 - 255 * strength / 30)),
        "autocontrast": lambda: ImageOps.autocontrast(pil),
        "equalize": lambda: ImageOps.equalize(pil),
    }
    return np.asarray(made[name](), np.float32)


EXACT = ("identity", "shear_x", "shear_y", "translate_x", "translate_y", "posterize", "solarize", "equalize")


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_equals_that_of_pillow(name):
    image = picture()
    count = len(STRENGTHS)
    strengths, signs = (jnp.asarray(values)[:, None] for values in zip(*STRENGTHS, strict=True))
    operation = jnp.full((count, 1), OPERATIONS.index(name))
    out = np.asarray(OPERATE(np.tile(image, (count, 1, 1, 1, 1)), operation, strengths, signs.astype(jnp.float32)))
    for (strength, sign), got in zip(STRENGTHS, out[:, 0], strict=True):
        error = np.abs(got - of_pillow(name, image, strength, sign))
        if name == "rotate":  # nearest pixels: a rounding may choose the neighbour
            assert (error > 0).any(-1).mean() < 0.03
        else:  # Pillow rounds grey values and results to bytes
            assert error.max() <= (0 if name in EXACT else 1.5 if name == "color" else 1.001)


def test_any_number_of_images_is_equalized():
    images = np.stack([picture(9, 8, seed) for seed in range(21)])[:, None]
    images[3] = 77  # one value only
    wanted = np.stack([np.asarray(ImageOps.equalize(Image.fromarray(image[0])), np.float32) for image in images])
    np.testing.assert_array_equal(jax.jit(equalized)(images[:, 0].astype(np.float32)), wanted)
    for chosen in (0, 1, 8, 9, 20, 21):
        operation = jnp.where(jnp.arange(21) < chosen, OPERATIONS.index("equalize"), 0)[::-1, None]
        out = np.asarray(OPERATE(images, operation, jnp.zeros((21, 1), int), jnp.ones((21, 1))))
        expected = np.where((np.arange(21) < chosen)[::-1, None, None, None], wanted, images[:, 0])
        np.testing.assert_array_equal(out[:, 0], expected)


def test_operations_strengths_and_signs_are_drawn_alike():
    image, draws = picture(8, 8), 4000
    grid = np.array(np.meshgrid(range(len(OPERATIONS)), range(STRONGEST + 1), (1, -1), indexing="ij")).reshape(3, -1, 1)
    every = np.asarray(
        OPERATE(np.tile(image, (grid.shape[1], 1, 1, 1, 1)), grid[0], grid[1], grid[2].astype(np.float32))
    )
    drawn = jax.jit(trivial_augment())(jax.random.key(4), {"image": np.tile(image, (draws, 1, 1, 1, 1))})["image"]
    kinds, of_every = np.unique(np.round(every.reshape(len(every), -1), 2), axis=0, return_inverse=True)
    known = {kind.tobytes(): index for index, kind in enumerate(kinds)}
    found = [
        known[own.tobytes()] for own in np.round(np.asarray(drawn).reshape(draws, -1), 2)
    ]  # a KeyError: no result of any
    share = np.bincount(of_every) / len(every)
    large = share * draws > 8
    counts = np.bincount(found, minlength=len(kinds))
    observed, expected = (np.append(each[large], each[~large].sum()) for each in (counts, share * draws))
    assert stats.chisquare(observed, expected).pvalue > 1e-4
