"""Images decoded once: the same rows from memory and from the cache, and nothing decoded that is there already."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.config import Config
from mmjax.config_load import config_from_dict
from mmjax.data.audit_images import perceptual_hashes
from mmjax.data.cache import NoCacheFolder
from mmjax.data.decode import decode_images, encode_png, shrink
from mmjax.data.images import read_images
from mmjax.data.loading import free_memory
from mmjax.data.pixels import content_key, decode_blocks, decode_resident, key_of_files
from mmjax.data.prepare import Prepared, prepare
from mmjax.data.prepare_images import load_pixels
from mmjax.errors import DataError
from mmjax.schema import ImageSpec
from tests.doors import image_config, write_csv, write_images
from tests.test_images import idx_folder


def loaded(config: Config, loading: str, cache: Path, **split: str) -> Config:
    """Return the config with this loading and cache folder."""
    content = msgspec.to_builtins(config)
    content["data"] |= {"loading": loading, "cache": {"path": str(cache)}}
    return config_from_dict(content | {"split": split}, "test")


def told(prepared: Prepared) -> list[str]:
    """Return the notes apart from those about loading."""
    return [note for note in prepared.notes if not note.startswith(("loading: ", "cache: "))]


def folders(home: Path) -> Config:
    images = write_images(home / "i")
    (images / "dark" / "3.png").write_text("no image")
    (images / "light" / "1.png").write_bytes((images / "light" / "2.png").read_bytes()[:-20])
    shutil.copy(images / "dark" / "5.png", images / "light" / "9.png")
    return image_config(images, on_invalid="report", image_size=[9, 10], resize="pad")


def listed(home: Path) -> Config:
    images = write_images(home / "i")
    rows = [(f"{shade}/{i}.png", f"{i * 10}", f"{i % 3}") for shade in ("dark", "light") for i in range(8)]
    rows[3] = ("dark/3.png", "", "1")
    rows += [("gone.png", "5", "1"), ("light/2.png", "7", "0")]
    path = write_csv(images / "l.csv", ("image", "age", "w"), rows)
    return image_config(path, target_column="age", weight_column="w", task="regression", on_invalid="drop")


def grey(home: Path) -> Config:
    return image_config(idx_folder(home / "x"), image_size=[10, 12])


@pytest.mark.parametrize("make", [folders, listed, grey])
def test_streamed_and_resident_are_equal(tmp_path: Path, make: Callable[[Path], Config]) -> None:
    config = make(tmp_path)
    resident = prepare(loaded(config, "resident", tmp_path / "c"))
    assert not (tmp_path / "c").exists()
    for how in ("made now", "found there; nothing is read or decoded again"):
        streamed = prepare(loaded(config, "streamed", tmp_path / "c"))
        assert streamed.streamed
        assert isinstance(streamed.batch["image"], np.memmap)
        assert list(streamed.batch) == list(resident.batch)
        for name, values in resident.batch.items():
            assert (streamed.batch[name].dtype, streamed.batch[name].shape) == (values.dtype, values.shape)
            assert np.array_equal(streamed.batch[name], values)
        assert streamed.fingerprint == resident.fingerprint
        assert told(streamed) == told(resident)
        assert streamed.quarantined == resident.quarantined
        assert streamed.findings == resident.findings
        assert (streamed.schema, streamed.names.tolist()) == (resident.schema, resident.names.tolist())
        assert all(np.array_equal(a, b) for a, b in zip(streamed.split[:3], resident.split[:3], strict=True))
        assert streamed.notes[-2] == "loading: streamed, as data.loading says"
        assert streamed.notes[-1].endswith(how)
    assert not resident.streamed
    assert list(told(resident)) == list(resident.notes)


def test_what_is_in_the_cache_is_not_decoded_again(tmp_path: Path) -> None:
    images = write_images(tmp_path / "i")
    config = loaded(image_config(images), "streamed", tmp_path / "c")
    first = prepare(config)
    file = images / "dark" / "0.png"
    before, content = file.stat(), file.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr("mmjax.data.pixels.decode_plain")
        again = prepare(config)
    assert again.fingerprint == first.fingerprint
    assert again.batch["image"].filename == first.batch["image"].filename
    file.write_bytes(bytes(len(content)))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as an archive unpacked over the old one does
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    with pytest.raises(DataError, match=r"1 of 16 images cannot be read; mend or remove them"):
        prepare(config)
    file.write_bytes(content)
    assert prepare(config).fingerprint == first.fingerprint
    smaller = prepare(loaded(image_config(images, image_size=[10, 12]), "streamed", tmp_path / "c"))
    assert smaller.batch["image"].shape == (16, 1, 10, 12, 3)


def test_policies_find_the_same_files_in_the_cache(tmp_path: Path) -> None:
    images = write_images(tmp_path / "i")
    (images / "dark" / "3.png").write_text("no image")
    for policy in ("fail", "drop", "report"):
        config = loaded(image_config(images, on_invalid=policy), "streamed", tmp_path / "c")
        if policy == "fail":
            with pytest.raises(DataError, match="1 of 16 images cannot be read"):
                prepare(config)
            continue
        found = prepare(config)
        assert [(q.name, q.reason, q.kept) for q in found.quarantined] == [
            ("dark/3.png", "expected JPEG, PNG, WebP, BMP or GIF, got no image", False)
        ]
        assert found.notes[-1].endswith("found there; nothing is read or decoded again"), "made under policy fail"
    for path in images.rglob("*.png"):
        path.write_text("no image")
    with pytest.raises(DataError, match="16 of 16 images cannot be read: none is left"):
        prepare(loaded(image_config(images, on_invalid="drop"), "streamed", tmp_path / "c"))


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = image_config(write_images(tmp_path / "i"))
    wanted = loaded(config, "streamed", tmp_path / "file")
    with pytest.raises(
        NoCacheFolder, match=r"data.cache.path: expected a folder to write encoded rows to, got .*/file"
    ):
        prepare(wanted)
    data = config.data.image
    assert data is not None
    source = read_images(data)
    # Files that are no images, in a size that many of fill a quarter of the memory: nothing is taken for them.
    spec = ImageSpec(height_px=20_000, width_px=20_000)
    count = free_memory() // 4 // (3 * 20_000**2) + 2
    source.columns["image"] = np.array([f"{tmp_path}/gone{i}" for i in range(count)], object)
    auto = loaded(config, "auto", tmp_path / "file")
    pixels, streamed, notes = load_pixels(auto, source, spec, data.path, None)
    assert not streamed
    assert pixels.faults == [(i, "no such file") for i in range(count)]
    assert notes == (
        f"loading: resident, as there is no cache: data.cache.path: expected a folder to write encoded rows to, "
        f"got {tmp_path / 'file'}: File exists; name another, or set data.loading: resident",
    )


def test_keys_that_only_a_list_of_images_has_are_refused_for_folders(tmp_path: Path) -> None:
    images = write_images(tmp_path / "i")
    config = image_config(images, id_column="key", weight_column="w", ignore_columns=["a", "b"])
    with pytest.raises(DataError) as caught:
        prepare(loaded(config, "auto", tmp_path, strategy="column", column="part"))
    wanted = (
        ("split.column", "part"),
        ("data.image.id_column", "key"),
        ("data.image.weight_column", "w"),
        ("data.image.ignore_columns", "a, b"),
    )
    assert caught.value.problems == tuple(
        f"{key}: expected with a CSV of images only, got '{value}' and {images}; remove it" for key, value in wanted
    )


def test_wrong_answers_are_told_before_all_is_decoded(tmp_path: Path) -> None:
    images = write_images(tmp_path / "i")
    rows = [(f"dark/{i}.png", "" if i == 4 else "ab"[i % 2]) for i in range(8)]
    (images / "dark" / "3.png").write_text("no image")
    path = write_csv(images / "l.csv", ("image", "label"), rows)
    with pytest.raises(DataError, match="expected a value in every row, got 1 missing"):
        prepare(image_config(path))
    found = prepare(image_config(path, on_invalid="drop"))
    assert found.names.tolist() == [f"dark/{i}.png" for i in (0, 1, 2, 5, 6, 7)]
    assert [(q.name, q.column) for q in found.quarantined] == [("dark/4.png", "label"), ("dark/3.png", "image")]


def test_copies_and_look_alikes_are_found(tmp_path: Path) -> None:
    home = tmp_path / "i"
    rng = np.random.default_rng(0)
    for i in range(12):
        (home / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (home / "ab"[i % 2] / f"{i}.png").write_bytes(encode_png(rng.integers(0, 256, (40, 40, 3), np.uint8)))
    shutil.copy(home / "a" / "0.png", home / "b" / "copy.png")
    found = prepare(image_config(home, train_split=1.0, validation_split=0.0, test_split=0.0)).findings
    assert {finding.check for finding in found} >= {"duplicates", "conflicts"}
    [conflict] = [finding for finding in found if finding.check == "conflicts"]
    assert "a/0.png" in conflict.examples[0]
    assert "b/copy.png" in conflict.examples[0]


def test_what_folders_have_no_column_for_is_not_advised(tmp_path: Path) -> None:
    home = write_images(tmp_path / "i")
    for i in range(8):
        shutil.copy(home / "dark" / "0.png", home / "dark" / f"copy{i}.png")
    rows = [(f"{path.parent.name}/{path.name}", path.parent.name) for path in sorted(home.glob("*/*.png"))]
    listed = write_csv(tmp_path / "l.csv", ("image", "label"), [(f"i/{name}", label) for name, label in rows])
    for source, begins in ((home, "list the images in a .csv file, add a column"), (listed, "add a column")):
        found = prepare(image_config(source, train_split=0.4, validation_split=0.3, test_split=0.3)).findings
        (overlap,) = [finding for finding in found if finding.check == "overlap"]
        assert overlap.advice.startswith(f"scores on them are too good: remove the copies, or {begins}")


def test_groups_in_two_splits_are_not_made(tmp_path: Path) -> None:
    images = write_images(tmp_path / "i")
    rows = [(f"{s}/{i}.png", s, f"g{i % 4}") for s in ("dark", "light") for i in range(8)]
    config = image_config(write_csv(images / "l.csv", ("image", "label", "who"), rows))
    found = prepare(loaded(config, "resident", tmp_path, strategy="group", column="who"))
    groups = [{rows[i][2] for i in part} for part in found.split[:3]]
    assert sum(map(len, groups)) == 4
    assert not [finding for finding in found.findings if finding.check == "overlap"]


# ---- decoding


@settings(max_examples=15, deadline=None)
@given(count=st.integers(0, 90), bad=st.sets(st.integers(0, 89), max_size=5), workers=st.integers(1, 3))
def test_blocks_are_what_decode_images_gives(count: int, bad: set[int], workers: int) -> None:
    rng = np.random.default_rng(count)
    spec = ImageSpec(height_px=300, width_px=320)
    sources = [
        b"no image" if i in bad else encode_png(rng.integers(0, 256, (4 + i % 3, 5, 3), np.uint8)) for i in range(count)
    ]
    blocks = list(decode_blocks(spec, sources, workers=workers))
    images, faults = decode_images(spec, sources)
    starts = np.cumsum([0, *(len(block.images) for block in blocks)])
    assert [(s + i, why) for s, block in zip(starts, blocks, strict=False) for i, why in block.faults] == faults
    if count:
        assert np.array_equal(np.concatenate([block.images for block in blocks]), images)
    contents = [key for block in blocks for key in block.contents.tolist()]
    assert contents == [content_key(source) for source in sources]


def test_hashes_are_of_the_decoded_image_made_small() -> None:
    rng = np.random.default_rng(0)
    arrays = [np.repeat(rng.integers(0, 256, (130, 10, 3), np.uint8), 13, axis=1) for _ in range(40)]
    found = decode_resident(ImageSpec(height_px=130, width_px=130), arrays)
    small = np.stack([shrink(image, 64) for image in found.images[:, 0]])
    assert small.shape == (40, 44, 44, 3)
    assert np.array_equal(found.hashes[:, 0], perceptual_hashes(small))
    mean = found.images[0, 0, :3, :3].astype(float).mean(axis=(0, 1))
    assert np.abs(small[0, 0, 0] - mean).max() <= 0.5
    image = small[0]
    assert shrink(image, 64) is image


def test_a_content_key_knows_bytes_dtype_and_shape() -> None:
    array = np.zeros((2, 6), np.uint8)
    kinds = (array, array.reshape(3, 4), array.view(np.uint16), bytes(12), bytes(13))
    assert len({content_key(kind) for kind in kinds}) == 5
    assert content_key(np.asfortranarray(array)) == content_key(array)


def test_decoding_ends_when_nobody_wants_more() -> None:
    before = threading.active_count()
    blocks = decode_blocks(ImageSpec(height_px=400, width_px=400), [encode_png(np.zeros((4, 4, 3), np.uint8))] * 400)
    next(blocks)
    blocks.close()
    assert threading.active_count() == before


def test_a_key_of_files_changes_with_each_of_them(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("a", "b")]
    keys = [key_of_files(paths)]
    for path in paths:
        Path(path).write_text("x")
        keys.append(key_of_files(paths))
    os.utime(paths[0], ns=(1, 1))
    keys += [key_of_files(paths), key_of_files(paths[::-1]), key_of_files(paths[:1])]
    assert len(set(keys)) == len(keys)
    assert key_of_files(paths) == key_of_files([os.path.relpath(path) for path in paths])
