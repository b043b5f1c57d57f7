"""Image sources: every layout is read in a fixed order, everything odd is said, every fault is named at once."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from mmjax.config import ImageData
from mmjax.data.decode import decode_images, encode_png
from mmjax.data.images import (
    apply_policy,
    list_images,
    objects,
    read_images,
    read_unlabelled_table,
    scan_images,
    take,
)
from mmjax.errors import DataError
from mmjax.schema import ImageSpec

PNG = encode_png(np.full((4, 4, 3), 90, np.uint8))


def make(folder: Path, *names: str, data: bytes = PNG) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def read(path: Path, **changes):
    return read_images(ImageData(path=str(path), **changes))


def problems(path: Path, **changes) -> tuple[str, ...]:
    with pytest.raises(DataError) as error:
        read(path, **changes)
    return tuple(problem.replace(str(path), "ROOT") for problem in error.value.problems)


def notes(source, path: Path) -> tuple[str, ...]:
    return tuple(note.replace(str(path), "ROOT") for note in source.notes)


# ---- class folders -------------------------------------------------------------------------------------------------


def test_class_folders_are_read_in_byte_order(tmp_path):
    make(tmp_path, "dog/b.png", "dog/a.png", "cat/B.png", "cat/a.png", "Ape/1.png")
    source = read(tmp_path)
    assert source.names.tolist() == ["Ape/1.png", "cat/B.png", "cat/a.png", "dog/a.png", "dog/b.png"]
    assert source.columns["label"].tolist() == ["Ape", "cat", "cat", "dog", "dog"]
    assert source.columns["image"].tolist() == [str(tmp_path / name) for name in source.names]
    assert (source.image_column, source.target_column) == ("image", "label")
    assert source.assigned is None
    assert source.notes == ()
    assert {values.dtype for values in (*source.columns.values(), source.names)} == {np.dtype(object)}
    assert scan_images(source.columns["image"]) == []


def test_what_is_skipped_or_odd_is_said(tmp_path):
    make(tmp_path, "a/1.png", "a/more/2.png", "a/notes.txt", "a/x", "b/1.JPG")
    make(tmp_path, ".DS_Store", "a/.hidden.png", "b/Thumbs.db", "b/desktop.ini", "__MACOSX/a/1.png", ".git/HEAD")
    make(tmp_path, "README.md", "labels.csv")
    source = read(tmp_path)
    assert source.names.tolist() == ["a/1.png", "a/more/2.png", "a/notes.txt", "a/x", "b/1.JPG"]
    assert notes(source, tmp_path) == (
        "ROOT: 6 hidden or system files skipped (.DS_Store, .git, .hidden.png and 3 more)",
        "ROOT: files with suffixes of no known image (.txt 1, none 1); their content decides",
        "ROOT: 1 files lie in folders inside a class folder and count for that class, as a/more/2.png",
        "ROOT: files beside the class folders are not read: README.md, labels.csv",
    )


def test_all_faults_of_a_folder_at_once(tmp_path):
    make(tmp_path, "cat/1.png", "Cat/1.png", "x.png", "y.TIF")
    (tmp_path / "empty").mkdir()
    assert problems(tmp_path) == (
        "ROOT: expected every image inside a class folder, got beside them: x.png, y.TIF",
        "ROOT: expected classes that differ in more than upper and lower case, got Cat, cat; merge them",
        "ROOT/empty: expected images, got none",
    )


def test_no_class_or_one(tmp_path):
    assert problems(tmp_path) == (
        "ROOT: expected a folder for each class, got no folders; or let data.image.path name a CSV of paths and labels",
    )
    make(tmp_path, "a.png", "b.png")
    assert "ROOT: expected a folder for each class, got 2 images without a class;" in problems(tmp_path)[0]
    wrapped = make(tmp_path / "w", "images/cat/1.png", "images/dog/1.png")
    assert problems(wrapped) == ("ROOT: expected at least 2 class folders, got only images; did you mean ROOT/images?",)
    single = make(tmp_path / "s", "cat/1.png")
    assert problems(single) == ("ROOT: expected at least 2 class folders, got only cat",)
    assert read_images(ImageData(path=str(single)), minimum_classes=1).columns["label"].tolist() == ["cat"]


def test_nothing_there(tmp_path):
    missing = tmp_path / "none"
    [problem] = problems(missing)
    assert (
        problem
        == f"data.image.path: expected a folder or a file, got nothing at ROOT; paths are relative to {os.getcwd()}"
    )
    lone = make(tmp_path, "photo.png") / "photo.png"
    assert problems(lone) == ("data.image.path: expected a folder of class folders or a .csv file, got ROOT",)


def test_links_are_followed_once_and_loops_end(tmp_path):
    elsewhere = make(tmp_path / "elsewhere", "3.png", "deep/4.png")
    root = make(tmp_path / "root", "a/1.png", "b/2.png")
    (root / "a" / "linked").symlink_to(elsewhere)
    (root / "a" / "again").symlink_to(elsewhere / "deep")
    (root / "a" / "self").symlink_to(root / "a")
    (root / "a" / "root").symlink_to(root)
    (root / "a" / "above").symlink_to(tmp_path)
    (root / "b" / "gone.png").symlink_to(root / "nothing.png")
    source = read(root)
    assert source.names.tolist() == ["a/1.png", "a/again/4.png", "a/linked/3.png", "b/2.png", "b/gone.png"]
    assert (
        "links to folders that are read already are not followed: a/above, a/linked/deep, a/root, a/self"
        in source.notes[0]
    )
    assert scan_images(source.columns["image"]) == [(4, "no such file")]


def test_names_that_are_not_utf8_are_refused(tmp_path):
    make(tmp_path, "a/1.png", "b/1.png")
    with open(os.fsencode(tmp_path) + b"/a/\xff.png", "wb") as file:
        file.write(PNG)
    assert problems(tmp_path) == ("ROOT/a: expected file names in UTF-8, got '\\udcff.png'; rename them",)


# ---- train, val and test folders -----------------------------------------------------------------------------------


@pytest.mark.parametrize("folders", [("train", "val", "test"), ("Train", "valid", "Test"), ("train", "validation")])
def test_split_folders_assign_rows(tmp_path, folders):
    make(tmp_path, *(f"{folder}/{label}/{i}.png" for folder in folders for label in "ab" for i in range(2)))
    source = read(tmp_path)
    assert source.assigned is not None
    wanted = ["train", "validation", "test"][: len(folders)]
    assert source.assigned.tolist() == [kind for kind in wanted for _ in range(4)]
    assert source.columns["label"].tolist() == ["a", "a", "b", "b"] * len(folders)
    assert source.names[0] == f"{folders[0]}/a/0.png"
    assert Path(source.columns["image"][-1]).read_bytes() == PNG


def test_a_class_that_train_lacks_is_named(tmp_path):
    make(
        tmp_path,
        "train/cat/1.png",
        "train/dog/1.png",
        "test/cats/1.png",
        "test/dog/1.png",
        "val/ape/1.png",
        "val/u.png",
    )
    assert problems(tmp_path) == (
        "ROOT/val: expected every image inside a class folder, got beside them: u.png",
        "ROOT/val: expected the classes of train, got 'ape'",
        "ROOT/test: expected the classes of train, got 'cats'; did you mean 'cat'?",
    )


def test_folders_that_do_not_fit_a_split(tmp_path):
    make(tmp_path / "odd", "train/a/1.png", "train/b/1.png", "extra/a/1.png")
    assert problems(tmp_path / "odd") == (
        "ROOT: train/ holds class folders, but beside it stand extra; move them, or name the set",
    )
    make(tmp_path / "lacks", "val/a/1.png", "test/a/1.png")
    assert problems(tmp_path / "lacks") == ("ROOT: expected a folder train beside test, val, got none",)
    make(tmp_path / "twice", "train/a/1.png", "train/b/1.png", "val/a/1.png", "valid/a/1.png")
    assert problems(tmp_path / "twice") == ("ROOT: expected one folder for validation, got val, valid",)


def test_a_class_may_be_called_train(tmp_path):
    source = read(make(tmp_path, "train/1.png", "plane/1.png", "test/1.png"))
    assert source.assigned is None
    assert source.columns["label"].tolist() == ["plane", "test", "train"]
    assert read(make(tmp_path / "other", "test/1.png", "plane/1.png")).assigned is None


# ---- CSV -----------------------------------------------------------------------------------------------------------


def csv(folder: Path, text: str) -> Path:
    (folder / "list.csv").write_text(text)
    return folder / "list.csv"


def test_a_csv_of_paths_and_labels(tmp_path):
    make(tmp_path, "x/1.png", "x/2.png")
    path = csv(tmp_path, f"kind,file,key,w,part,more\na,x/1.png,k1,1,train,q\nb,{tmp_path}/x/2.png,k2,2,test,r\n")
    data = ImageData(path=str(path), image_column="file", target_column="kind", id_column="key", weight_column="w")
    source = read_images(data, keep=("part",))
    assert source.columns["file"].tolist() == [str(tmp_path / "x/1.png"), str(tmp_path / "x/2.png")]
    assert {name: cells.tolist() for name, cells in source.columns.items() if name != "file"} == {
        "kind": ["a", "b"],
        "key": ["k1", "k2"],
        "w": ["1", "2"],
        "part": ["train", "test"],
    }
    assert source.names.tolist() == ["k1", "k2"]
    assert notes(source, path) == (
        "ROOT: columns not used, only images are learnt from: more; `data.tabular.images` learns from both",
    )
    assert (
        read(path, image_column="file", target_column="kind", ignore_columns=("more", "w", "part", "key")).notes == ()
    )
    named = read(path, image_column="file", target_column="kind").names.tolist()
    assert named == ["x/1.png", f"{tmp_path}/x/2.png"]


def test_missing_files_of_a_csv_are_listed_by_line(tmp_path):
    make(tmp_path, "1.png")
    path = csv(tmp_path, "image,label\n1.png,a\n2.png,b\n,a\n")
    assert problems(path) == (
        "ROOT: 2 of 3 images are missing; paths are relative to the CSV file; mend these cells, or set "
        "data.image.on_invalid to drop",
        "ROOT:3: no such file: 2.png",
        "ROOT:4: no path of an image",
    )
    many = csv(tmp_path, "image,label\n" + "".join(f"n{i}.png,a\n" for i in range(30)))
    assert len(problems(many)) == 22
    assert problems(many)[-1] == "and 10 more"


def test_missing_files_of_a_csv_may_be_dropped(tmp_path):
    make(tmp_path, "1.png")
    source = read(csv(tmp_path, "image,label\n1.png,a\n2.png,b\n"), on_invalid="drop")
    kept, keep, said = apply_policy(source, scan_images(source.columns["image"]), "drop")
    assert kept.names.tolist() == ["1.png"]
    assert keep.tolist() == [True, False]
    assert said == ("1 of 2 images cannot be read and are left out (on_invalid: drop): 1 no such file",)


def test_missing_columns_are_named_at_once(tmp_path):
    path = csv(tmp_path, "images,lable\n1.png,a\n")
    assert problems(path, weight_column="w") == (
        "data.image.image_column: expected a column of ROOT (images, lable), got 'image'; did you mean 'images'?",
        "data.image.target_column: expected a column of ROOT (images, lable), got 'label'; did you mean 'lable'?",
        "data.image.weight_column: expected a column of ROOT (images, lable), got 'w'",
    )
    assert problems(csv(tmp_path, "image\n1.png\n"), target_column="image") == (
        "data.image.target_column: expected another column than image_column, got 'image'",
    )


# ---- idx -----------------------------------------------------------------------------------------------------------


def idx(magic: int, array: np.ndarray) -> bytes:
    return magic.to_bytes(4, "big") + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def idx_folder(folder: Path, *, packed: bool = True, stems: tuple[str, ...] = ("train", "t10k")) -> Path:
    folder.mkdir(exist_ok=True)
    for stem in stems:
        rng = np.random.default_rng(len(stem))
        for kind, magic, array in (
            ("images-idx3", 0x803, rng.integers(0, 256, (5, 3, 4), np.uint8)),
            ("labels-idx1", 0x801, np.array([3, 10, 2, 3, 2], np.uint8)),
        ):
            data = idx(magic, array)
            name = f"{stem}-{kind}-ubyte" + (".gz" if packed else "")
            (folder / name).write_bytes(gzip.compress(data) if packed else data)
    return folder


@pytest.mark.parametrize("packed", [True, False])
def test_idx_pairs(tmp_path, packed):
    source = read(idx_folder(tmp_path, packed=packed))
    assert source.assigned is not None
    assert source.assigned.tolist() == ["train"] * 5 + ["test"] * 5
    assert source.columns["label"].tolist() == ["3", "10", "2", "3", "2"] * 2
    assert source.names.tolist()[4:6] == ["train/4", "test/0"]
    want = np.random.default_rng(5).integers(0, 256, (5, 3, 4), np.uint8)
    assert np.array_equal(np.stack(source.columns["image"][:5].tolist()), want)
    images, bad = decode_images(ImageSpec(height_px=3, width_px=4), source.columns["image"])
    assert not bad
    assert np.array_equal(images[:5], np.repeat(want[..., None], 3, axis=-1))
    assert scan_images(source.columns["image"]) == []


def test_damaged_idx_files(tmp_path):
    folder = idx_folder(tmp_path, packed=False)
    images, labels = folder / "train-images-idx3-ubyte", folder / "t10k-labels-idx1-ubyte"
    whole = images.read_bytes()
    images.write_bytes(whole[:-1])
    labels.write_bytes(b"\0\0\x08\x01\0\0\0\x04abcd")
    assert problems(folder) == (
        "ROOT/train-images-idx3-ubyte: expected 5 x 3 x 4 = 60 bytes as its header says, got 59; fetch the file again",
        "ROOT: expected as many labels as images, got 4 in t10k-labels-idx1-ubyte, 5 in t10k-images-idx3-ubyte",
    )
    labels.unlink()
    images.write_bytes(b"PK")
    assert problems(folder) == (
        "ROOT/train-images-idx3-ubyte: expected an idx file that begins with 00000803, got 504b",
        "ROOT: expected a label file beside t10k-images-idx3-ubyte, got none",
    )
    images.write_bytes(whole + b"x")
    assert "as its header says, got more" in problems(folder)[0]
    images.write_bytes(b"\0\0\x08\x03" + b"\xff" * 12)
    assert "got 0; fetch the file again" in problems(folder)[0]


def test_damaged_gzip_and_a_lone_test_set(tmp_path):
    folder = idx_folder(tmp_path)
    labels = folder / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(labels.read_bytes()[:-6])
    assert problems(folder)[0].startswith("ROOT/train-labels-idx1-ubyte.gz: is damaged or truncated: ")
    lone = idx_folder(tmp_path / "lone", stems=("t10k",))
    assert problems(lone) == ("ROOT: expected train-images-idx3-ubyte(.gz), got idx files of the test set only",)


# ---- bad files -----------------------------------------------------------------------------------------------------


def spoilt(folder: Path):
    make(folder, *(f"{label}/{i}.png" for label in "ab" for i in range(4)))
    make(folder, "a/2.png", "c/1.png", data=PNG[:-9])
    make(folder, "b/1.png", data=b"text")
    source = read(folder)
    return source, scan_images(source.columns["image"], workers=2)


def test_policy_fail_lists_the_bad_files(tmp_path):
    source, bad = spoilt(tmp_path)
    with pytest.raises(DataError) as error:
        apply_policy(source, bad, "fail")
    assert error.value.problems == (
        "3 of 9 images cannot be read; mend or remove them, or set data.image.on_invalid to drop",
        "a/2.png: PNG is truncated",
        "b/1.png: expected JPEG, PNG, WebP, BMP or GIF, got no image",
        "c/1.png: PNG is truncated",
    )


def test_policies_drop_and_report_leave_them_out_and_say_so(tmp_path):
    source, bad = spoilt(tmp_path)
    kept, keep, said = apply_policy(source, bad, "drop")
    assert np.flatnonzero(~keep).tolist() == [2, 5, 8]
    assert kept.names.tolist() == source.names[keep].tolist()
    assert len(kept.columns["image"]) == len(kept.columns["label"]) == 6
    assert said == (
        "3 of 9 images cannot be read and are left out (on_invalid: drop): 2 PNG is truncated, "
        "1 expected JPEG, PNG, WebP, BMP or GIF, got no image",
        "no image is left of: c",
    )
    again, _, told = apply_policy(source, bad, "report")
    assert again.names.tolist() == kept.names.tolist()
    assert "c/1.png: PNG is truncated" in told
    assert len(told) == 5


def test_nothing_bad_and_nothing_good(tmp_path):
    source, _ = spoilt(tmp_path)
    same, keep, said = apply_policy(source, [], "fail")
    assert same is source
    assert keep.all()
    assert said == ()
    with pytest.raises(DataError, match="9 of 9 images cannot be read: none is left"):
        apply_policy(source, [(index, "is empty") for index in range(9)], "drop")


def test_take_keeps_assigned_in_step(tmp_path):
    source = read(idx_folder(tmp_path))
    part = take(source, np.arange(4, 7))
    assert part.assigned is not None
    assert part.assigned.tolist() == ["train", "test", "test"]
    assert part.names.tolist() == ["train/4", "test/0", "test/1"]
    assert objects([]).shape == (0,)


# ---- without labels ------------------------------------------------------------------------------------------------


def test_unlabelled_images(tmp_path):
    make(tmp_path, "b.png", "a/z.png", ".hidden")
    assert list_images(tmp_path)[0].tolist() == ["a/z.png", "b.png"]
    assert list_images(str(tmp_path))[1] == (f"{tmp_path}: 1 hidden or system files skipped (.hidden)",)
    (tmp_path / "none").mkdir()
    for path, why in (("none", "expected images, got none"), ("b.png", "got a file"), ("gone", "got nothing")):
        with pytest.raises(DataError, match=why):
            list_images(tmp_path / path)


def test_unlabelled_csv(tmp_path):
    path = csv(tmp_path, "id,image\n7,x/1.png\n")
    source = read_unlabelled_table(str(path))
    assert source.columns["image"].tolist() == [str(tmp_path / "x/1.png")]
    assert (source.names.tolist(), source.columns["id"].tolist(), source.target_column) == (["x/1.png"], ["7"], "")
    with pytest.raises(DataError, match=r"image_column: expected a column of .* \(id, image\), got 'photo'"):
        read_unlabelled_table(str(path), image_column="photo")


# ---- real data -----------------------------------------------------------------------------------------------------


def test_real_flowers(shared_data):
    source = read(shared_data / "images/flowers")
    labels, counts = np.unique(source.columns["label"].astype(str), return_counts=True)
    assert dict(zip(labels.tolist(), counts.tolist(), strict=True)) == {
        "daisy": 382,
        "dandelion": 526,
        "rose": 392,
        "sunflower": 367,
        "tulip": 492,
    }
    assert source.notes == ()
    assert scan_images(source.columns["image"][::50]) == []


def test_real_emoji_table(shared_data):
    source = read(shared_data / "multimodal/emoji/emoji.csv", target_column="category")
    assert len(source.names) == 1820
    assert scan_images(source.columns["image"][::40]) == []


def test_real_fashion_mnist(shared_data):
    source = read(shared_data / "images/fashion-mnist")
    assert source.assigned is not None
    assert [(source.assigned == part).sum() for part in ("train", "test")] == [60000, 10000]
    assert sorted(set(source.columns["label"])) == list("0123456789")
    assert source.columns["image"][69999].shape == (28, 28)
