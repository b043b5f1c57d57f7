import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmjax.config import Audit
from mmjax.data.audit import audit, perceptual_hashes
from mmjax.data.audit_images import NEAR_BITS, PARTNERS, near_pairs, same_pixels
from mmjax.data.decode import decode_images
from mmjax.data.idx import read_idx
from mmjax.schema import ImageSpec
from tests.auditing import found, image_rows, thirds

SIDE = 48


def scenes(count: int, seed: int = 0) -> np.ndarray:
    """Smooth images in colour, each another, u8[count, 48, 48, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, size=(count, 8, 8, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for c in coarse])


def saved_again(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def smaller(image: np.ndarray) -> np.ndarray:
    reduced = Image.fromarray(image).resize((36, 36), Image.Resampling.LANCZOS)
    return np.asarray(reduced.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def brighter(image: np.ndarray) -> np.ndarray:
    return np.minimum(image * 0.85 + 30, 255).astype(np.uint8)


CHANGES = {"saved": lambda image: saved_again(image, 60), "smaller": smaller, "brighter": brighter}


def recoloured(image: np.ndarray) -> np.ndarray:
    """Another colour with the same grey."""
    grey = image.astype(float) @ [0.299, 0.587, 0.114]
    return np.stack([grey, grey, grey], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("change", list(CHANGES))
def test_an_image_that_was_changed_a_little_looks_alike_within_and_across_splits(change):
    images = scenes(40)
    images = np.concatenate([images, CHANGES[change](images[3])[None], CHANGES[change](images[8])[None]])
    parts = np.zeros(42, np.int8)
    parts[41] = 2
    within, across = found(image_rows(images, [0, 1] * 21, parts), "near_duplicates")
    assert within.what == "pairs of images that look alike, within a split: 1 (1 train)"
    assert within.examples == ("a3 (train) = a40 (train)",)
    assert across.what == "pairs of images that look alike, across splits: 1 (1 train-test)"
    assert across.examples == ("a8 (train) = a41 (test)",)
    assert (within.found, across.found) == (1, 1)
    advice = "number them in a column and keep them together (split.strategy: group)"
    assert across.advice == f"scores on them are too good: remove them, or {advice}"
    bare = image_rows(images, [0, 1] * 21, parts)._replace(has_columns=False)
    _, across = found(bare, "near_duplicates")
    assert across.advice.endswith(f"remove them, or list the images in a .csv file, {advice}")


def test_the_same_file_twice_is_a_copy_and_not_told_as_looking_alike():
    images = scenes(30)
    rows = image_rows(np.concatenate([images, images[[4]]]), [0, 1] * 15 + [0], np.zeros(31, np.int8))
    (finding,) = audit(rows, Audit())
    assert (finding.check, finding.what) == ("duplicates", "exact copies within a split: 1 image (1 train)")
    assert finding.examples == ("a4 (train) = a30 (train)",)


def test_one_file_under_two_labels_is_a_conflict():
    images = scenes(30)
    rows = image_rows(np.concatenate([images, images[[4]]]), [0, 1] * 15 + [1], np.zeros(31, np.int8))
    (finding,) = found(rows, "conflicts")
    assert finding.what == "the same file but with different labels: 2 images in 1 group"
    assert finding.examples == ("a4: cat vs a30: dog",)
    assert finding.advice == "one of the labels is wrong"


def test_one_photo_saved_twice_under_two_labels_is_a_conflict():
    images = scenes(30)
    images = np.concatenate([images, saved_again(images[4], 70)[None]])
    (finding,) = found(image_rows(images, [0, 1] * 15 + [1], np.zeros(31, np.int8)), "conflicts")
    assert finding.what == "look alike but with different labels: 1 pair of images"
    assert finding.examples == ("a4 (train) = a30 (train) [cat and dog]",)


def test_other_images_and_other_colours_do_not_look_alike():
    images = scenes(200)
    images = np.concatenate([images, np.stack([recoloured(image) for image in images[:20]])])
    assert found(image_rows(images, [0, 1] * 110, thirds(220)), "near_duplicates") == []


def test_even_images_look_alike_only_in_one_colour():
    shades = [np.full((SIDE, SIDE, 3), value, np.uint8) for value in (0, 1, 128, 255)]
    rows = image_rows(np.stack([*shades, *scenes(8)]), [0, 1] * 6, np.zeros(12, np.int8))
    (finding,) = found(rows, "near_duplicates")
    assert finding.examples == ("a0 (train) = a1 (train)",)


def test_images_that_are_absent_are_not_compared():
    images = scenes(20)
    images[[3, 4]] = 0
    images[4, 0, 0] = 1
    rows = image_rows(images, [0, 1] * 10, np.zeros(20, np.int8))
    assert len(found(rows, "near_duplicates")) == 1
    present = np.ones((20, 1), np.float32)
    present[3] = 0
    assert found(rows._replace(batch=rows.batch | {"image_present": present}), "near_duplicates") == []


def test_hashes_are_those_of_each_image_alone_at_any_size():
    images = np.concatenate([scenes(1030), scenes(5, seed=3)])
    hashes = perceptual_hashes(images)
    assert hashes.shape == (1035, 4)
    assert hashes.dtype == np.uint64
    assert (perceptual_hashes(images[1020:1030]) == hashes[1020:1030]).all()
    for height, width in ((8, 8), (1, 1), (28, 17)):
        assert perceptual_hashes(images[:2, :height, :width]).shape == (2, 4)


def brute_pairs(hashes: np.ndarray) -> set[tuple[int, int]]:
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(axis=2)
    return {(i, j) for i, j in np.argwhere(apart <= NEAR_BITS).tolist() if i < j}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(0, 15))
def test_all_near_hashes_are_paired_and_no_others(seed, count, flips):
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, size=(count, 4), dtype=np.uint64)
    twins = np.unpackbits(hashes[: count // 2].view(np.uint8), axis=1)
    for row in twins:
        row[rng.choice(256, size=flips, replace=False)] ^= 1
    hashes = np.concatenate([hashes, np.packbits(twins, axis=1).view(np.uint64)])
    assert set(map(tuple, near_pairs(hashes).tolist())) == brute_pairs(hashes)


def test_equal_hashes_are_chained():
    hashes = np.zeros((500, 4), np.uint64)
    hashes[250] = 2**64 - 1
    pairs = near_pairs(hashes)
    assert len(pairs) == 498
    assert 250 not in pairs


def test_the_frames_of_a_film_do_not_make_pairs_without_end():
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(0, 2**63, (1, 4), np.uint64), 3000, axis=0)
    frames[:, 0] ^= np.uint64(1) << rng.integers(0, 64, 3000, np.uint64)
    frames[:, 1] ^= np.uint64(1) << rng.integers(0, 64, 3000, np.uint64)
    pairs = near_pairs(frames)
    assert 2000 < len(pairs) <= PARTNERS * 3000, "of 4.5 million pairs that are near"
    assert len(np.unique(pairs)) > 2500


def test_same_pixels_allow_for_brightness_and_contrast():
    images = scenes(4)
    dimmer = (images * 0.7 + 20).astype(np.uint8)
    assert same_pixels(images, dimmer).all()
    assert not same_pixels(images, images[::-1]).any()


def test_the_flower_under_two_labels_is_found(shared_data):
    folder = shared_data / "images" / "flowers"
    paths = sorted(path for name in ("rose", "tulip") for path in (folder / name).iterdir())
    paths = paths[::4] + [p for p in paths if p.name == "15922772266_1167a06620.jpg"]
    paths = sorted(set(paths))
    images, faults = decode_images(ImageSpec(height_px=64, width_px=64), list(map(str, paths)))
    assert faults == []
    labels = [int(path.parent.name == "tulip") for path in paths]
    rows = image_rows(images, labels, np.zeros(len(paths), np.int8))
    rows = rows._replace(names=np.array([f"{p.parent.name}/{p.name}" for p in paths], object))
    duplicates, conflicts = (found(rows, check) for check in ("duplicates", "conflicts"))
    both = "rose/15922772266_1167a06620.jpg", "tulip/15922772266_1167a06620.jpg"
    assert duplicates[0].examples == (f"{both[0]} (train) = {both[1]} (train)",)
    assert conflicts[0].examples == (f"{both[0]}: cat vs {both[1]}: dog",)
    assert found(rows, "near_duplicates") == []


def test_fashion_mnist_is_not_drowned_in_pairs(shared_data):
    train = read_idx(str(shared_data / "images" / "fashion-mnist"))[0]
    images = np.repeat(train.images[:20_000, :, :, None], 3, axis=3)
    rows = image_rows(images, (train.labels[:20_000] % 2).tolist(), thirds(20_000))
    pairs = sum(f.found for f in found(rows, "near_duplicates"))
    assert 1 <= pairs <= 30
