"""Augments: pure functions of a key, the laws they all obey, and what each does, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from mmjax.config import Augmentation
from mmjax.errors import ConfigError
from mmjax.transforms.augment import (
    alternating_flip,
    chain_augments,
    color,
    flip,
    reflect,
    rotate,
    rotate_images,
    shift,
    shift_images,
    vertical_flip,
)
from mmjax.transforms.boxes import erase, random_resized_crop, resize
from mmjax.transforms.build import build_augment
from mmjax.transforms.trivial_augment import trivial_augment

AUGMENTS = {
    "flip": flip(),
    "rotate": rotate(40),
    "shift": shift(0.25),
    "color": color(0.5),
    "chain": chain_augments(flip(), shift(0.2), color(0.3)),
    "vertical": vertical_flip(),
    "crop": random_resized_crop((0.2, 0.9), (0.5, 2.0)),
    "erase": erase(0.5),
    "trivial": trivial_augment(),
}
JUMPS = {"trivial": 0.02}
"""Share of the values that a rounding may move to another pixel or step."""
COMPILED = {name: jax.jit(augment) for name, augment in AUGMENTS.items()}
ROTATED, SHIFTED = jax.jit(rotate_images), jax.jit(shift_images)
NOTHING = {
    "rotate": rotate(0),
    "shift": shift(0.0),
    "color": color(0.0),
    "chain": chain_augments(),
    "erase": erase(0.0),
    "crop": random_resized_crop((1.0, 1.0), (6 / 7, 6 / 7)),
    "resize": resize((7, 6)),
}
laws = settings(max_examples=10, deadline=None)
names = st.sampled_from(sorted(AUGMENTS))
seeds = st.integers(0, 2**31 - 1)


def images(seed: int, shape: tuple[int, ...] = (3, 2, 7, 6, 3), dtype: type = np.uint8) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, 256, shape).astype(dtype))


def moved(augment, key: jax.Array, image: jax.Array) -> np.ndarray:
    return np.asarray(augment(key, {"image": image})["image"])


# ---- laws of all ---------------------------------------------------------------------------------------------------


@laws
@given(name=names, seed=seeds)
def test_compiled_equals_eager_and_keeps_shape_and_range(name, seed):
    image = images(seed)
    eager = moved(AUGMENTS[name], jax.random.key(seed), image)
    compiled = moved(COMPILED[name], jax.random.key(seed), image)
    assert eager.shape == image.shape
    assert eager.dtype == np.float32
    assert eager.min() >= 0
    assert eager.max() <= 255.001
    assert (np.abs(compiled - eager) > 0.05).mean() <= JUMPS.get(name, 0.0)


@pytest.mark.parametrize("name", AUGMENTS)
def test_bytes_and_floats_give_the_same(name, getkey):
    key, image = getkey(), images(0)
    floats = moved(AUGMENTS[name], key, image.astype(jnp.float32))
    np.testing.assert_allclose(moved(AUGMENTS[name], key, image), floats, atol=0.01)


@laws
@given(name=names, seed=seeds)
def test_the_key_decides(name, seed):
    image, key = images(0), jax.random.key(seed)
    assert np.array_equal(moved(COMPILED[name], key, image), moved(COMPILED[name], jax.random.key(seed), image))


@pytest.mark.parametrize("name", AUGMENTS)
def test_another_key_gives_another_result_and_rows_differ(name):
    image = jnp.broadcast_to(images(0, (1, 1, 7, 6, 3)), (3, 2, 7, 6, 3))
    one, two = (moved(COMPILED[name], jax.random.key(seed), image) for seed in (1, 2))
    assert not np.array_equal(one, two)
    assert len(np.unique(one.reshape(6, -1), axis=0)) >= 2
    assert not np.array_equal(one[:, 0], one[:, 1])


@laws
@given(name=names, seed=seeds, row=st.integers(0, 2))
def test_a_row_does_not_see_the_others(name, seed, row):
    image, key = images(seed), jax.random.key(seed)
    others = images(seed + 1).at[row].set(image[row])
    np.testing.assert_array_equal(moved(COMPILED[name], key, image)[row], moved(COMPILED[name], key, others)[row])


@pytest.mark.parametrize("name", NOTHING)
def test_no_strength_changes_nothing(name, getkey):
    image = images(5)
    np.testing.assert_array_equal(moved(NOTHING[name], getkey(), image), np.asarray(image, np.float32))


@pytest.mark.parametrize("name", AUGMENTS)
def test_other_fields_are_untouched_and_a_batch_without_images_is_unchanged(name, getkey):
    batch = {"image": images(0), "label": jnp.arange(3), "image_present": jnp.ones((3, 2))}
    out = AUGMENTS[name](getkey(), batch)
    assert np.array_equal(out["label"], batch["label"])
    assert set(out) == set(batch)
    assert batch["image"].dtype == np.uint8
    table = {"numeric": jnp.ones((3, 2))}
    assert np.array_equal(AUGMENTS[name](getkey(), table)["numeric"], table["numeric"])


@pytest.mark.parametrize("name", ["chain", "crop", "erase", "trivial"])
@pytest.mark.parametrize("shape", [(2, 1, 1, 1, 3), (1, 1, 8, 2, 3), (0, 1, 4, 4, 3)])
def test_small_shapes(name, shape, getkey):
    assert moved(COMPILED[name], getkey(), images(0, shape)).shape == shape


@pytest.mark.parametrize("augment", [chain_augments(flip()), AUGMENTS["crop"], AUGMENTS["trivial"]])
def test_members_may_map_over_keys(augment):
    keys = jax.random.split(jax.random.key(0), 4)
    batch = {"image": images(0)}
    mapped = jax.jit(jax.vmap(augment, (0, None)))(keys, batch)["image"]
    for key, one in zip(keys, mapped, strict=True):
        assert (np.abs(moved(augment, key, batch["image"]) - one) > 0.05).mean() <= 0.02


# ---- each one ------------------------------------------------------------------------------------------------------


@laws
@given(seed=seeds)
def test_flip_twice_is_the_image(seed):
    image, key = images(seed), jax.random.key(seed)
    once = COMPILED["flip"](key, {"image": image})
    np.testing.assert_array_equal(moved(COMPILED["flip"], key, once["image"]), np.asarray(image, np.float32))


@pytest.mark.parametrize(("name", "axis"), [("flip", 3), ("vertical", 2)])
def test_about_half_are_mirrored(name, axis):
    image = images(0, (400, 1, 2, 3, 3))
    out = moved(COMPILED[name], jax.random.key(0), image)
    plain = np.asarray(image, np.float32)
    mirrored = (out == np.flip(plain, axis)).all((1, 2, 3, 4))
    kept = (out == plain).all((1, 2, 3, 4))
    assert (mirrored | kept).all()
    assert 150 < mirrored.sum() < 250


ALTERNATING = jax.jit(alternating_flip(3))


def alternated(image: jax.Array, rows: np.ndarray, epoch: int, key: int = 0) -> np.ndarray:
    batch = {"image": image, "row": jnp.asarray(rows), "epoch": jnp.full(len(rows), epoch)}
    return np.asarray(ALTERNATING(jax.random.key(key), batch)["image"])


@laws
@given(seed=seeds, epoch=st.integers(0, 1000))
def test_alternating_flips_show_each_image_both_ways_in_two_epochs(seed, epoch):
    image, rows = images(seed, (6, 2, 4, 5, 3)), np.random.default_rng(seed).integers(0, 10**6, 6)
    plain, now = np.asarray(image, np.float32), alternated(image, rows, epoch)
    mirrored = (now == plain[:, :, :, ::-1]).all((2, 3, 4))
    assert (mirrored | (now == plain).all((2, 3, 4))).all()
    np.testing.assert_array_equal(alternated(image, rows, epoch + 1), now[:, :, :, ::-1])
    np.testing.assert_array_equal(alternated(image, rows, epoch + 2, key=7), now)  # the key says nothing
    order = np.random.default_rng(seed).permutation(6)
    np.testing.assert_array_equal(alternated(image[order], rows[order], epoch), now[order])


def test_alternating_flips_mirror_half_in_each_epoch():
    image = jnp.broadcast_to(jnp.asarray([0, 255], jnp.uint8)[:, None], (2000, 1, 1, 2, 3))
    share = (alternated(image, np.arange(2000), 0)[:, 0, 0, 0, 0] == 255).mean()
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(2000)  # 4 deviations: one seed in 16,000 would fail


def test_an_alternating_flip_leaves_other_fields_and_batches_without_images():
    batch = {"image": images(0), "row": jnp.arange(3), "epoch": jnp.zeros(3, int), "label": jnp.arange(3)}
    out = ALTERNATING(jax.random.key(0), batch)
    assert set(out) == set(batch)
    assert out["image"].dtype == jnp.float32
    assert np.array_equal(out["label"], batch["label"])
    assert set(alternating_flip(0)(jax.random.key(0), {"numeric": jnp.ones((3, 2))})) == {"numeric"}


@pytest.mark.parametrize("fraction", [-0.1, 2.0, float("nan")])
def test_a_shift_is_a_share_of_a_side(fraction: float):
    with pytest.raises(ConfigError, match=f"shift: expected a share of each side, from 0 to 1, got {fraction:g}"):
        shift(fraction)


@laws
@given(seed=seeds, data=st.data())
def test_shift_equals_padding_and_cropping(seed, data):
    image = images(seed, (4, 1, 6, 5, 3))
    down = np.array(data.draw(st.lists(st.integers(-5, 5), min_size=4, max_size=4))).reshape(4, 1)
    across = np.array(data.draw(st.lists(st.integers(-4, 4), min_size=4, max_size=4))).reshape(4, 1)
    got = np.asarray(SHIFTED(image, jnp.asarray(down), jnp.asarray(across)))
    for row in range(4):
        padded = np.pad(np.asarray(image[row, 0]), ((5, 5), (4, 4), (0, 0)), mode="reflect")
        y, x = 5 - down[row, 0], 4 - across[row, 0]
        np.testing.assert_array_equal(got[row, 0], padded[y : y + 6, x : x + 5])


def test_shift_stays_within_its_share_and_reaches_it():
    point = np.zeros((300, 1, 21, 21, 3), np.uint8)
    point[:, :, 10, 10] = 255
    out = moved(COMPILED["shift"], jax.random.key(3), jnp.asarray(point))
    where = np.argwhere(out[:, 0, :, :, 0] == 255)[:, 1:] - 10
    assert len(where) == 300
    assert (where.min(0) == -5).all()
    assert (where.max(0) == 5).all()


@laws
@given(size=st.integers(1, 9), index=st.integers(-40, 40))
def test_reflect_is_the_mirror_of_numpy(size, index):
    want = np.pad(np.arange(size), 45, mode="reflect")[index + 45]
    assert reflect(jnp.asarray([index]), size).tolist() == [want]


def test_rotation_by_right_angles():
    image = images(1, (2, 1, 6, 6, 3), np.float32)
    for quarter in range(-2, 5):
        got = ROTATED(image, jnp.full((2, 1), 90.0 * quarter))
        np.testing.assert_allclose(got, np.rot90(image, quarter, axes=(2, 3)), atol=0.02)
    wide = images(1, (1, 1, 4, 7, 3), np.float32)
    np.testing.assert_allclose(ROTATED(wide, jnp.full((1, 1), 180.0)), wide[:, :, ::-1, ::-1], atol=0.02)


@pytest.mark.parametrize("degrees", [0.0, 10.0, -33.0, 170.0])
def test_rotation_equals_scipy(degrees):
    image = images(2, (1, 1, 9, 12, 3), np.float32)
    want = ndimage.rotate(np.asarray(image[0, 0]), degrees, reshape=False, order=1, mode="nearest")
    np.testing.assert_allclose(ROTATED(image, jnp.full((1, 1), degrees))[0, 0], want, atol=0.05)


def test_rotation_keeps_a_flat_image():
    flat = jnp.full((3, 2, 7, 6, 3), 77, jnp.uint8)
    np.testing.assert_allclose(moved(COMPILED["rotate"], jax.random.key(1), flat), 77, atol=1e-3)


def test_color_is_three_mixes():
    image, key = images(4, (5, 1, 6, 6, 3)), jax.random.key(9)
    b, c, s = np.asarray(jax.random.uniform(key, (3, 5, 1), minval=0.5, maxval=1.5))[..., None, None, None]
    luma = np.array([0.299, 0.587, 0.114])
    x = np.clip(b * np.asarray(image, np.float64), 0, 255)
    x = np.clip(c * x + (1 - c) * (x @ luma).mean((2, 3))[..., None, None, None], 0, 255)
    x = np.clip(s * x + (1 - s) * (x @ luma)[..., None], 0, 255)
    np.testing.assert_allclose(moved(COMPILED["color"], key, image), x, atol=0.01)


# ---- from the config -----------------------------------------------------------------------------------------------


def test_the_config_chooses():
    assert build_augment(Augmentation(horizontal_flip=False)) is None
    image, key = images(0), jax.random.key(0)
    plain = build_augment(Augmentation())
    every = build_augment(Augmentation(shift=0.2, color=0.3))
    turned = build_augment(Augmentation(horizontal_flip=False, rotation_range=40))
    assert plain is not None
    assert every is not None
    assert turned is not None
    np.testing.assert_array_equal(moved(turned, key, image), moved(chain_augments(rotate(40)), key, image))
    np.testing.assert_array_equal(moved(plain, key, image), moved(chain_augments(flip()), key, image))
    np.testing.assert_array_equal(moved(jax.jit(every), key, image), moved(COMPILED["chain"], key, image))
