"""Preparing: from a config's data section to encoded rows, with nothing learnt from rows that are not trained on."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mmjax.config import Config
from mmjax.config_load import config_from_dict
from mmjax.data.decode import encode_png
from mmjax.data.encode import encode
from mmjax.data.findings import finding_line
from mmjax.data.prepare import prepare
from mmjax.data.table import read_table
from mmjax.data.validate import refuse_cells
from mmjax.errors import DataError
from tests.doors import HEADER, image_config, table_config, table_rows, write_csv, write_images, write_table


def with_split(config: Config, strategy: str, column: str | None = None) -> Config:
    content = msgspec.to_builtins(config) | {"split": {"strategy": strategy, "column": column}}
    return config_from_dict(content, "test")


# ---- tables


def test_rows_of_a_table_are_encoded_in_order(tmp_path: Path) -> None:
    found = prepare(table_config(write_table(tmp_path / "t.csv", rows=60)))
    assert {name: (values.dtype.name, values.shape) for name, values in found.batch.items()} == {
        "numeric": ("float32", (60, 5)),
        "category": ("int32", (60, 2)),
        "label": ("int32", (60,)),
    }
    assert found.names.tolist() == [f"r{i}" for i in range(60)]
    parts = np.concatenate([found.split.train, found.split.validation, found.split.test])
    assert sorted(parts) == list(range(60))
    assert "id: left out, identifier: the id column" in found.notes
    assert "split: stratified, as the target is one of classes" in found.notes


def test_without_an_id_rows_are_named_by_their_line(tmp_path: Path) -> None:
    rows = [*table_rows(20), ("x", "1.0", "red\nish", "yes", "2024-01-01", "a"), *table_rows(2)]
    found = prepare(table_config(write_csv(tmp_path / "t.csv", HEADER, rows), id_column=None))
    assert found.names.tolist() == [*range(2, 23), 24, 25]


def test_vocabularies_and_offsets_are_of_training_rows_only(tmp_path: Path) -> None:
    rows = [(f"r{i}", f"{i}", f"colour {i}", "yes", "2024-01-01", "ab"[i % 2]) for i in range(19)]
    rows[0] = (*rows[0][:3], "no", *rows[0][4:])
    found = prepare(table_config(write_csv(tmp_path / "t.csv", HEADER, rows)))
    known = {f"colour {i}" for i in found.split.train}
    assert set(found.schema.column("colour").vocabulary) == known
    codes = found.batch["category"][:, 0]
    assert (codes[found.split.train] > 0).all()
    assert (codes[found.split.test] == 0).all()


def test_weights_ignored_columns_and_a_split_column_are_no_features(tmp_path: Path) -> None:
    header = ("x", "part", "w", "note", "y")
    rows = [
        (f"{i}.5", ("train", "train", "val", "Test")[i % 4], f"{i % 3}", f"n{i % 5}", f"{i / 3:.3f}") for i in range(40)
    ]
    config = table_config(
        write_csv(tmp_path / "t.csv", header, rows),
        target_column="y",
        id_column=None,
        weight_column="w",
        ignore_columns=["note"],
    )
    found = prepare(with_split(config, "column", "part"))
    assert [column.name for column in found.schema.features] == ["x"]
    assert found.batch["weight"].tolist() == [i % 3 for i in range(40)]
    assert found.batch["label"].shape == (40, 1)
    assert found.split.test.tolist() == list(range(3, 40, 4))
    assert not any(note.startswith("split: ") for note in found.notes)
    with pytest.raises(
        DataError, match=r"split.strategy: expected random for regression \(numbers.*\), got stratified"
    ):
        prepare(with_split(config, "stratified"))
    assert "split: random, as the target is a number" in prepare(config).notes


SCHEMA_FILE = {
    "properties": {
        "size": {"type": "number", "maximum": 100},
        "colour": {"enum": ["green", "red", "blue"]},
        "kind": {"enum": ["c", "b", "a"]},
    },
    "required": ["kind"],
}


def test_a_schema_file_decides_and_the_policy_obeys(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(SCHEMA_FILE))
    rows = table_rows(60)
    rows[4] = (*rows[4][:1], "101", *rows[4][2:])
    rows[9] = (*rows[9][:2], "mauve", *rows[9][3:])
    path = write_csv(tmp_path / "t.csv", HEADER, rows)
    with pytest.raises(DataError) as caught:
        prepare(table_config(path, schema=str(tmp_path / "s.json")))
    assert caught.value.problems == (
        f"{path}:6: column 'size': expected a number <= 100, got '101'",
        f"{path}:11: column 'colour': expected one of 'green', 'red', 'blue', got 'mauve'",
    )
    dropped = prepare(table_config(path, schema=str(tmp_path / "s.json"), on_invalid="drop"))
    assert len(dropped.names) == 58
    assert "r4" not in dropped.names
    assert f"{path}: dropped 2 of 60 rows that violate the schema" in dropped.notes
    assert dropped.schema.column("colour").vocabulary == ("green", "red", "blue")
    assert dropped.schema.target.classes == ("c", "b", "a")
    kept = prepare(table_config(path, schema=str(tmp_path / "s.json"), on_invalid="report"))
    assert len(kept.names) == 60
    assert f"{path}: kept 2 of 60 rows that violate the schema" in kept.notes


def test_refused_cells_are_those_that_encode_refuses(tmp_path: Path) -> None:
    schema = prepare(table_config(write_table(tmp_path / "t.csv"))).schema
    rows = table_rows(6)
    rows[1] = ("r1", "x", "mauve", "perhaps", "", "a")
    rows[4] = ("r4", "", "", "", "31.12.2024", "zzz")
    table = read_table(write_csv(tmp_path / "bad.csv", HEADER, rows))
    expected = [
        f"{table.path}:3: column 'size': expected a number, got 'x'",
        f"{table.path}:6: column 'when': expected a date (ISO 8601), got '31.12.2024'",
        "mend these cells, or leave those of the features empty that are not known",
    ]
    with pytest.raises(DataError) as caught:
        refuse_cells(schema, table)
    assert list(caught.value.problems) == expected
    with pytest.raises(DataError) as caught:
        refuse_cells(schema, table, label=True)
    kind = f"{table.path}:6: column 'kind': expected one of 'a', 'b', 'c', got 'zzz'"
    assert sorted(caught.value.problems) == sorted([*expected, kind])
    sound = read_table(write_csv(tmp_path / "sound.csv", HEADER, table_rows(6)))
    refuse_cells(schema, sound, label=True)
    assert len(encode(schema, sound.columns, label=True)["label"]) == 6
    with pytest.raises(DataError, match="row 2: expected a number"):
        encode(schema, table.columns, label=True)


# ---- images


def picture(path: Path, height: int, width: int, level: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(np.full((height, width, 3), level, np.uint8)))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(20, 30)] * 10, (20, 30)),
        ([(20, 30), (40, 50)] * 5, (30, 30)),
        ([(100, 200)] * 10, (64, 64)),
        ([(100, 20)] * 10, (64, 20)),
        ([(4, 5)] * 10, (8, 8)),
    ],
)
def test_the_size_of_images_follows_from_theirs(tmp_path: Path, sizes: list, expected: tuple[int, int]) -> None:
    for i, (height, width) in enumerate(sizes):
        picture(tmp_path / "i" / "ab"[i // 5] / f"{i}.png", height, width)
    found = prepare(image_config(tmp_path / "i"))
    assert found.schema.image is not None
    assert (found.schema.image.height_px, found.schema.image.width_px) == expected
    assert found.batch["image"].shape == (10, 1, *expected, 3)
    given = prepare(image_config(tmp_path / "i", image_size=[10, 12], resize="pad", filter="box"))
    assert given.schema.image is not None
    assert (given.schema.image.resize, given.batch["image"].shape) == ("pad", (10, 1, 10, 12, 3))


def test_folders_hold_classes_whatever_their_names(tmp_path: Path) -> None:
    for i in range(60):
        picture(tmp_path / "i" / f"{i % 30}" / f"{i}.png", 8, 8)
    found = prepare(image_config(tmp_path / "i"))
    assert found.schema.target.task == "classification"
    assert found.schema.target.classes == tuple(map(str, range(30)))
    assert found.schema.target.reason == "folders hold classes"
    assert found.schema.target.values == found.schema.target.classes, "names, also where they are numbers"
    assert prepare(image_config(tmp_path / "i", task="regression")).batch["label"].dtype == np.float32


def test_bad_files_are_told_or_left_out(tmp_path: Path) -> None:
    images = write_images(tmp_path / "i")
    (images / "dark" / "3.png").write_text("no image")
    with pytest.raises(DataError) as caught:
        prepare(image_config(images))
    assert caught.value.problems == (
        "1 of 16 images cannot be read; mend or remove them, or set data.image.on_invalid to drop",
        "dark/3.png: expected JPEG, PNG, WebP, BMP or GIF, got no image",
    )
    found = prepare(image_config(images, on_invalid="drop"))
    assert "dark/3.png" not in found.names
    assert any(
        note.startswith("1 of 16 images cannot be read and are left out (on_invalid: drop)") for note in found.notes
    )


def test_folders_that_are_parts_split_the_images(tmp_path: Path) -> None:
    write_images(tmp_path / "i" / "train")
    write_images(tmp_path / "i" / "val", each=2)
    found = prepare(image_config(tmp_path / "i"))
    assert [name.split("/")[0] for name in found.names[found.split.validation]] == ["val"] * 4
    assert any(note.startswith("split: folders, as ") for note in found.notes)
    assert "split: no row is assigned to test; there will be no test metrics" in found.notes
    flat = image_config(tmp_path / "i" / "train")
    with pytest.raises(DataError, match=r"split.strategy: expected train, val and test folders in .*, got none"):
        prepare(with_split(flat, "folders"))
    with pytest.raises(DataError, match=r"split.column: expected with a CSV of images only, got 'part' and "):
        prepare(with_split(flat, "column", "part"))


def test_a_list_of_images_with_weights_ids_and_parts(tmp_path: Path) -> None:
    images = write_images(tmp_path / "i")
    rows = [
        (f"{shade}/{i}.png", str(i * 10), f"{shade}-{i}", str(i % 2), ("train", "test")[i % 2])
        for shade in ("dark", "light")
        for i in range(8)
    ]
    listed = write_csv(images / "l.csv", ("file", "age", "key", "w", "part"), rows)
    config = image_config(
        listed,
        image_column="file",
        target_column="age",
        id_column="key",
        weight_column="w",
        task="regression",
        validation_split=0.0,
        train_split=0.8,
    )
    found = prepare(config)
    assert (found.names[0], found.schema.id_column) == ("dark-0", "key")
    assert found.batch["label"][:, 0].tolist() == [i * 10.0 for i in range(8)] * 2
    config = image_config(listed, image_column="file", target_column="age", task="regression")
    found = prepare(with_split(config, "column", "part"))
    assert set(found.split.test) == {i for i, row in enumerate(rows) if row[4] == "test"}
    assert found.names[0] == "dark/0.png"


def test_missing_numbers_are_told(tmp_path: Path) -> None:
    cells = [("" if i % 4 == 0 else i % 7 + 0.5, f"2024-01-{i % 9 + 1:02d}", "ab"[i % 2]) for i in range(40)]
    lines = ["size,when,kind", *(",".join(map(str, row)) for row in cells)]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    data = {"tabular": {"path": str(tmp_path / "t.csv"), "target_column": "kind"}}
    notes = prepare(config_from_dict({"name": "t", "data": data}, "test")).notes
    assert "missing numbers, filled and flagged by an indicator: size 10" in notes


def test_missing_categories_are_told_and_unknown_ones_are_none(tmp_path: Path) -> None:
    """Both are encoded as 0: the counts are those of the file."""
    parts = ["train"] * 30 + ["test"] * 10
    words = ["" if i % 5 == 0 else "new" if i > 36 else "ab"[i % 2] for i in range(40)]
    cells = [(i % 7 + 0.5, word, part, "yn"[i % 2]) for i, (word, part) in enumerate(zip(words, parts, strict=True))]
    path = write_csv(tmp_path / "t.csv", ("size", "word", "part", "kind"), [tuple(map(str, row)) for row in cells])
    data = {"tabular": {"path": str(path), "target_column": "kind"}}
    split = {"strategy": "column", "column": "part"}
    notes = prepare(config_from_dict({"name": "t", "data": data, "split": split}, "test")).notes
    assert f"missing categories, known to the model as such: word {words.count('')}" in notes
    assert any(line.startswith(f"word: {words.count('new')} cells of validation and test rows") for line in notes)


def test_cells_outside_an_enum_are_told_as_of_all_rows(tmp_path: Path) -> None:
    cells = [(i % 7 + 0.5, "c" if i % 10 == 0 else "ab"[i % 2], "yn"[i % 2]) for i in range(60)]
    path = write_csv(tmp_path / "t.csv", ("size", "word", "kind"), [tuple(map(str, row)) for row in cells])
    (tmp_path / "s.json").write_text('{"properties": {"word": {"enum": ["a", "b"]}}}')
    data = {"path": str(path), "target_column": "kind", "schema": str(tmp_path / "s.json"), "on_invalid": "report"}
    notes = prepare(config_from_dict({"name": "t", "data": {"tabular": data}}, "test")).notes
    told = "hold a value that is not in the schema file's enum (1 distinct); they count as unknown"
    assert f"word: 6 cells of all rows, training rows included, {told}" in notes
    assert not any("that no training row has" in line for line in notes)


@pytest.mark.parametrize("columns", ["warn", "ignore"])
def test_a_column_that_is_left_out_is_told_once(columns: str, tmp_path: Path) -> None:
    """By the audit where it looks at columns, else by a note: a name, a row number, numbers but for a cell, a text."""
    random = np.random.default_rng(0)
    cells = {
        "number": [f"{i}" for i in range(120)],
        "who": [f"Mr. {i:04x}" for i in range(120)],
        "amount": ["n.a.", *(f"{x:.5f}" for x in random.normal(size=119))],
        "unit": ["kg"] * 120,
        "review": [" ".join(random.choice(["good", "bad", "wine", "bread"], 9)) for _ in range(120)],
        "size": [f"{x:.2f}" for x in random.normal(size=120)],
        "kind": ["yn"[i % 2] for i in range(120)],
    }
    path = write_csv(tmp_path / "t.csv", tuple(cells), list(zip(*cells.values(), strict=True)))
    config = {"name": "t", "data": {"tabular": {"path": str(path), "target_column": "kind"}}}
    found = prepare(config_from_dict(config | {"audit": {"columns": columns}}, "test"))
    lines = [*found.notes, *map(finding_line, found.findings)]
    for name in ("number", "who", "amount", "unit", "review"):
        assert len([line for line in lines if f"'{name}'" in line or line.startswith(f"{name}: ")]) == 1, (name, lines)
        assert any("left out" in line for line in lines if name in line)
