"""Columns that name images: paths stay in their folder, what cannot be read is told, all ways to load are alike."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.config import Config
from mmjax.config_load import config_from_dict
from mmjax.data.decode import decode_image, encode_png
from mmjax.data.encode import check_columns, encode, left_out
from mmjax.data.image_paths import path_within
from mmjax.data.prepare import Prepared, prepare
from mmjax.errors import DataError
from mmjax.schema import Column, ImageSpec, Schema, Target

ROWS = 24
HEADER = ("id", "front", "size", "back", "kind")


def picture(seed: int) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 255, (12, 10, 3), dtype=np.uint8))


def make_table(folder: Path, *changes: tuple[int, str, str], header: tuple[str, ...] = HEADER) -> Path:
    """A table whose rows name two images each; `changes` are (row, column, cell) of other cells."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(ROWS):
        for side in ("f", "b"):
            (folder / f"pictures/{side}{i}.png").write_bytes(picture(2 * i + (side == "b")))
        images = {"front": f"pictures/f{i}.png", "back": f"pictures/b{i}.png"}
        rows.append({"id": f"r{i}", "size": f"{i * 7 % 5}.5", "kind": "ab"[i % 2], **images})
    for row, column, cell in changes:
        rows[row][column] = cell
    path = folder / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, header, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def config_of(path: Path, images: dict[str, Any] | None = None, **more: Any) -> Config:
    table = {"path": str(path), "target_column": "kind", "id_column": "id"} | more.pop("table", {})
    table["images"] = {"columns": ["front", "back"], "image_size": [8, 8]} | (images or {})
    return config_from_dict({"name": "mixed", "data": {"tabular": table, **more.pop("data", {})}, **more}, "test")


def same(a: Prepared, b: Prepared) -> None:
    assert set(a.batch) == set(b.batch)
    for name in a.batch:
        np.testing.assert_array_equal(a.batch[name], b.batch[name])
    assert a.fingerprint == b.fingerprint


# ---- paths


@given(st.lists(st.sampled_from(["a", "b", "..", ".", "", "c.png", "...", "a..b"]), min_size=1, max_size=6))
def test_no_path_leaves_its_folder(parts: list[str]) -> None:
    cell = "/".join(parts)
    place = [] if cell.startswith("/") else ["root", "of"]
    for part in parts:
        place = place[:-1] if part == ".." else place if part in (".", "") else [*place, part]
    expected = "/" + "/".join(place) if place[:2] == ["root", "of"] else None
    assert path_within("/root/of", cell) == expected


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ("../table.csv", "the path of an image in"),
        ("pictures/../../x.png", "the path of an image in"),
        ("/etc/hostname", "the path of an image in"),
        ("pictures/none.png", "(there is none of that name)"),
        ("pictures/b\0.png", "NUL"),
        ("notes.txt", "a readable image (expected JPEG, PNG, WebP, BMP or GIF, got no image)"),
        ("pictures", "a readable image (is a folder, not an image)"),
        ("cut.png", "a readable image (PNG is truncated)"),
    ],
)
def test_a_cell_that_names_no_readable_image_is_told_with_line_and_column(tmp_path: Path, cell: str, told: str) -> None:
    path = make_table(tmp_path, (3, "front", cell))
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(picture(0)[:60])
    with pytest.raises(DataError) as error:
        prepare(config_of(path))
    assert told in str(error.value)
    if told != "NUL":
        assert f"{path}:5: column 'front': expected" in str(error.value)


@pytest.mark.parametrize("policy", ["drop", "report"])
def test_rows_with_images_that_cannot_be_read_go_to_the_quarantine(tmp_path: Path, policy: str) -> None:
    bad = [(3, "front", "../out.png"), (7, "back", "pictures/none.png"), (9, "back", "table.csv"), (11, "kind", "")]
    prepared = prepare(config_of(make_table(tmp_path, *bad), table={"on_invalid": policy}))
    assert len(prepared.names) == ROWS - 4
    assert not {"r3", "r7", "r9", "r11"} & set(map(str, prepared.names))
    assert prepared.batch["image"].shape == (ROWS - 4, 2, 8, 8, 3)
    listed = {(found.name, found.column, found.value, found.kept) for found in prepared.quarantined}
    assert listed >= {
        ("5", "front", "../out.png", False),
        ("9", "back", "pictures/none.png", False),
        ("11", "back", "table.csv", False),
    }
    assert any("column 'back': expected a readable image" in note for note in prepared.notes)
    kept = prepare(config_of(make_table(tmp_path)))
    rows = [i for i in range(ROWS) if i not in (3, 7, 9, 11)]
    np.testing.assert_array_equal(prepared.batch["image"], kept.batch["image"][rows])


def test_a_class_that_loses_its_last_rows_for_different_reasons_is_missed(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(picture(0)[:60])
    gone = [(row, "back", ("pictures/none.png", "cut.png")[row // 2 % 2]) for row in range(1, ROWS, 2)]
    with pytest.raises(DataError, match="a single class is left: 'a'"):
        prepare(config_of(make_table(tmp_path, *gone), table={"on_invalid": "drop"}))
    prepared = prepare(config_of(make_table(tmp_path, *gone[:5]), table={"on_invalid": "drop"}))
    assert [found.name for found in prepared.quarantined] == ["3", "5", "7", "9", "11"]
    assert [str(name) for name in prepared.names[:7]] == ["r0", "r2", "r4", "r6", "r8", "r10", "r11"]


# ---- what is read


def test_images_are_decoded_in_the_order_of_the_columns_and_an_empty_cell_is_a_missing_one(tmp_path: Path) -> None:
    path = make_table(tmp_path, (0, "back", ""), (1, "front", " "), (2, "front", "NA"), (2, "back", "?"))
    prepared = prepare(config_of(path))
    spec = prepared.schema.image
    assert spec is not None
    assert spec.columns == ("front", "back")
    present = prepared.batch["image_present"]
    np.testing.assert_array_equal(present[:4], [[1, 0], [0, 1], [0, 0], [1, 1]])
    assert not prepared.batch["image"][present == 0].any()
    for row, column, name in ((0, 0, "f0"), (1, 1, "b1"), (5, 0, "f5"), (5, 1, "b5")):
        expected = decode_image(str(tmp_path / f"pictures/{name}.png"), spec)
        np.testing.assert_array_equal(prepared.batch["image"][row, column], expected)
    assert "missing images, known to the model as such: front 2, back 2" in prepared.notes
    assert prepared.schema.column("front").reason == "names images"
    assert [column.name for column in prepared.schema.features] == ["size"]
    assert prepared.schema.modality == "multimodal"


def test_training_and_serving_encode_alike_and_streamed_is_resident(tmp_path: Path) -> None:
    path = make_table(tmp_path, (0, "back", ""), (4, "size", "?"))
    prepared = prepare(config_of(path))
    streamed = prepare(config_of(path, data={"loading": "streamed", "cache": {"path": str(tmp_path / "cache")}}))
    assert (prepared.streamed, streamed.streamed) == (False, True)
    same(prepared, streamed)
    again = prepare(config_of(path, data={"loading": "streamed", "cache": {"path": str(tmp_path / "cache")}}))
    same(prepared, again)
    (tmp_path / "pictures/f8.png").write_bytes(picture(99))
    changed = prepare(config_of(path, data={"loading": "streamed", "cache": {"path": str(tmp_path / "cache")}}))
    assert (changed.batch["image"] != prepared.batch["image"]).any(axis=(1, 2, 3, 4)).tolist().index(True) == 8
    with path.open() as file:
        rows = list(csv.DictReader(file))
    columns = {name: np.array([row[name] for row in rows], object) for name in HEADER}
    for name in ("front", "back"):
        columns[name] = np.array([cell and str(tmp_path / cell) for cell in columns[name]], object)
    served = encode(changed.schema, columns, label=True)
    for name, values in served.items():
        np.testing.assert_array_equal(values, changed.batch[name])


def test_the_cache_is_found_from_any_folder_where_images_are_missing_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = make_table(tmp_path, (0, "back", "")), {"path": str(tmp_path / "cache")}
    for folder in (tmp_path, tmp_path / "pictures"):
        monkeypatch.chdir(folder)
        notes = prepare(config_of(path, data={"loading": "streamed", "cache": cache})).notes
    assert any("found there; nothing is read or decoded again" in note for note in notes)


def test_the_folder_of_the_images_may_be_another_than_that_of_the_table(tmp_path: Path) -> None:
    path = make_table(tmp_path / "images")
    moved = path.rename(tmp_path / "moved.csv")
    with pytest.raises(DataError, match="expected an image file in"):
        prepare(config_of(moved))
    assert len(prepare(config_of(moved, {"folder": str(tmp_path / "images")})).names) == ROWS


def test_copies_are_rows_with_the_same_images_whatever_the_files_are_called(tmp_path: Path) -> None:
    path = make_table(tmp_path, (1, "size", "0.5"), (1, "kind", "a"))
    for side in ("f", "b"):
        (tmp_path / f"pictures/{side}1.png").write_bytes((tmp_path / f"pictures/{side}0.png").read_bytes())
    findings = {finding.check: finding for finding in prepare(config_of(path)).findings}
    assert {"duplicates", "overlap"} & set(findings)
    (tmp_path / "pictures/b1.png").write_bytes(picture(77))
    assert not {"duplicates", "overlap"} & {finding.check for finding in prepare(config_of(path)).findings}


def test_a_table_of_nothing_but_images_is_learnt_from_too(tmp_path: Path) -> None:
    prepared = prepare(config_of(make_table(tmp_path), table={"ignore_columns": ["size"]}))
    assert prepared.schema.features == ()
    assert "numeric" not in prepared.batch
    with pytest.raises(DataError, match=r"images.columns: no column 'frnt'.*did you mean 'front'"):
        prepare(config_of(make_table(tmp_path), {"columns": ["frnt", "back"]}))


# ---- what a request may leave out

SCHEMA = Schema(
    target=Target(column="y", task="regression"),
    columns=(Column(name="x", kind="numeric"), Column(name="z", kind="numeric")),
    image=ImageSpec(columns=("p", "q"), height_px=8, width_px=8),
)


def test_a_pass_has_as_many_images_whatever_the_number_of_a_row() -> None:
    rows = [
        Schema(target=SCHEMA.target, image=ImageSpec(columns=tuple("abcdefgh"[:n]), height_px=8, width_px=8))
        for n in (1, 2, 3, 4, 8)
    ]
    assert [schema.rows_of_images(256) for schema in rows] == [256, 128, 64, 64, 32]
    assert rows[-1].rows_of_images(4) == 1


@pytest.mark.parametrize(
    ("given", "absent"),
    [
        ("x z p q", []),
        ("x z p", []),
        ("x z", []),
        ("p", []),
        ("p q", []),
        ("x p q", ["z"]),
        ("x", ["z"]),
        ("", ["x", "z", "p", "q"]),
        ("y", ["x", "z", "p", "q"]),
    ],
)
def test_either_side_may_be_left_out_whole_and_no_single_feature(given: str, absent: list[str]) -> None:
    names = tuple(given.split())
    if absent:
        assert left_out(SCHEMA, ()) == ()
        with pytest.raises(DataError) as error:
            check_columns(SCHEMA, names, where="row 1")
        assert [f"'{name}'" in str(error.value) for name in absent] == [True] * len(absent)
        assert len(error.value.problems) == len(absent)
    else:
        check_columns(SCHEMA, names, where="row 1")
        columns = {name: np.array([None], object) for name in names}
        batch = encode(SCHEMA, columns)
        assert np.isnan(batch["numeric"]).all()
        assert not batch["image_present"].any()
        assert batch["image"].shape == (1, 2, 8, 8, 3)


@pytest.mark.parametrize("cell", [5, 2.5, memoryview(b"x"), True])
def test_what_is_no_image_at_all_is_told_with_its_row(cell: Any) -> None:
    columns = {"p": np.array([None, cell], object)}
    with pytest.raises(DataError, match=r"column 'p', row 2: expected an image \(its path, bytes or pixels\), got"):
        encode(SCHEMA, columns)
