"""Init: what it writes loads, fits the very rows it looked at and trains at once, and it says what it took and why."""

import gzip
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.config import Config, Inference
from mmjax.config_load import load_config
from mmjax.data.decode import encode_png
from mmjax.data.prepare import Prepared, prepare
from mmjax.data.table import Table
from mmjax.errors import ConfigError, DataError
from mmjax.init import Draft, Wish, command, config_stem, draft, draft_table, guess_delimiter, likely_target
from mmjax.train import fit
from tests.doors import HEADER, door, table_rows, write_csv, write_images, write_table
from tests.rough import roughly

ODD_NAMES = (
    *("no", "on", "5", ".5", "1e3", "0x10", "1:30", "2020-01-01", "true", "null", "~", "=", "<<", "...", "---", "-"),
    *("a: b", "x: ", "#x", "a #b", "*a", "&a", "!t", "%x", "@x", "`x`", "{a}", "{0}", "[a]", "|", ">", "?", "\\n"),
    *(
        " lead",
        "trail ",
        "with space",
        "ünïcode 花",
        'q"uote',
        "it's",
        "a,b",
        "a\tb",
        "two\nlines",
        "b\x7fell",
        "x\u2028y",
    ),
)


def take(folder: Path, data: Path, **wish) -> tuple[Draft, Config, Prepared]:
    """Draft, write, load and prepare, as init and then train do."""
    schema_path = folder / "made.schema.json"
    made = draft(data, Wish(**wish, schema_path=str(schema_path)))
    (folder / "made.yaml").write_text(made.config, encoding="utf-8")
    if made.schema_file is not None:
        schema_path.write_text(made.schema_file, encoding="utf-8")
    config = load_config(folder / "made.yaml")
    return made, config, prepare(config)


def cells(*columns: list[str]) -> list[tuple[str, ...]]:
    return list(zip(*columns, strict=True))


NUMBERS = [f"{i * 0.37 % 5:.2f}" for i in range(40)]
WORDS = ["k", "m"] * 20


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_column_name_reads_back_as_target_and_as_feature(tmp_path: Path, name: str) -> None:
    data = write_csv(tmp_path / "t.csv", ("value", name), cells(NUMBERS, WORDS))
    for target, feature in ((name, "value"), ("value", name)):
        made, config, prepared = take(tmp_path, data, target=target)
        assert config.data.tabular is not None
        assert config.data.tabular.target_column == prepared.schema.target.column == target
        assert [column.name for column in prepared.schema.features] == [feature]
        assert made.schema.target.classes == (("k", "m") if target == name else ())
        assert len(prepared.names) == 40


@settings(max_examples=40, deadline=None)
@given(
    name=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
    path=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
)
def test_any_text_reads_back_from_the_config(name: str, path: str) -> None:
    columns = {f"{name}+": np.array(NUMBERS, object), name: np.array(WORDS, object)}
    made = draft_table(Table(columns, np.arange(2, 42), path), ";", Wish(target=name, schema_path=path, name="n"))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "x.yaml").write_text(made.config, encoding="utf-8")
        config = load_config(f"{folder}/x.yaml")
    assert config.data.tabular is not None
    found = config.data.tabular
    assert (found.path, found.schema, found.target_column, found.delimiter) == (path, path, name, ";")


@pytest.mark.parametrize(
    ("names", "target"),
    [
        (["x", "y", "z", "target"], "target"),
        (["y", "label"], "label"),
        (["Class", "x"], "Class"),
        (["a", " Label ", "b"], " Label "),
        (["outcome", "y", "x"], "y"),
        (["x", "Y", "z"], "Y"),
        (["age", "income"], "income"),
        (["classes", "last"], "last"),
    ],
)
def test_a_target_that_is_not_named_is_guessed_by_its_name(names: list[str], target: str) -> None:
    assert likely_target(names)[0] == target
    assert likely_target(names)[1].startswith("not named by --target: ")
    assert likely_target(names, "x") == ("x", "named by --target")


def test_a_wrong_guess_says_what_to_name(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "t.csv", ("v", "w"), cells(NUMBERS, ["same"] * 40))
    with pytest.raises(DataError) as caught:
        draft(data, Wish())
    assert caught.value.problems == (
        "target column 'w': expected at least two classes, got 'same'",
        "--target: none was named, so 'w' was taken; name the column to predict",
    )
    with pytest.raises(DataError, match=r"no column 'vv'; .*; did you mean 'v'\?"):
        draft(data, Wish(target="vv"))


def test_the_task_is_as_asked(tmp_path: Path) -> None:
    whole = [str(i % 7) for i in range(40)]
    data = write_csv(tmp_path / "t.csv", ("v", "w"), cells(NUMBERS, whole))
    assert take(tmp_path, data)[2].schema.target.task == "classification"
    _, config, prepared = take(tmp_path, data, task="regression")
    assert config.data.tabular is not None
    assert config.data.tabular.task == prepared.schema.target.task == "regression"
    _, _, prepared = take(tmp_path, data, target="w", task="classification")
    assert prepared.schema.target.classes == tuple("0123456")


def test_rows_without_a_target_are_dropped_and_counted(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "t.csv", ("v", "w"), cells(NUMBERS, ["NA", " ", *WORDS[2:]]))
    made, config, prepared = take(tmp_path, data)
    note = f"{data}: dropped 2 of 40 rows without a value of 'w', the first on line 2"
    assert made.notes == (note,)
    assert config.data.tabular is not None
    assert config.data.tabular.on_invalid == "drop"
    assert note in prepared.notes
    assert len(prepared.names) == 38


@pytest.mark.parametrize(("mark", "name"), [(";", "t.csv"), ("\t", "t.tsv"), ("|", "t.csv.gz"), (",", "t.csv.gz")])
def test_the_delimiter_is_found_in_the_header(tmp_path: Path, mark: str, name: str) -> None:
    text = "\n".join([mark.join(("a b", "w")), *(mark.join(pair) for pair in zip(NUMBERS, WORDS, strict=True))])
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    _, config, prepared = take(tmp_path, tmp_path / name)
    assert config.data.tabular is not None
    assert config.data.tabular.delimiter == mark
    assert [column.name for column in prepared.schema.features] == ["a b"]
    assert config_stem(tmp_path / name) == "t"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"one\n1\n", b'"open\n'])
def test_a_file_without_any_delimiter_is_left_to_the_reader(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    assert guess_delimiter(tmp_path / "t.csv") == ","
    (tmp_path / "t.csv.gz").write_bytes(content)
    assert guess_delimiter(tmp_path / "t.csv.gz") == ","


def test_thresholds_are_settable(tmp_path: Path) -> None:
    names = [f"n{i}" for i in range(20)] * 2
    words = [f"{i % 3} b c" for i in range(40)]
    data = write_csv(
        tmp_path / "t.csv", ("v", "names", "words", "w"), cells(NUMBERS, names, words, [str(i % 9) for i in range(40)])
    )

    def kinds(**thresholds) -> dict[str, str]:
        made, _, prepared = take(tmp_path, data, target="w", inference=Inference(**thresholds))
        assert [c.kind for c in prepared.schema.columns] == [c.kind for c in made.schema.columns]
        return {c.name: c.kind for c in made.schema.columns} | {"w": made.schema.target.task}

    assert kinds() == {"v": "numeric", "names": "categorical", "words": "categorical", "w": "classification"}
    assert kinds(identifier_unique_ratio=0.5)["names"] == "identifier"
    assert kinds(max_categories=10)["names"] == "text"
    assert kinds(text_mean_words=2.0)["words"] == "text"
    assert kinds(max_integer_classes=5)["w"] == "regression"


def test_the_door_writes_files_and_an_object(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_csv(tmp_path / "my data.csv", ("v", "w"), cells(NUMBERS, ["1", "2"] * 20))
    ended = door(capsys, command, "--data", data, "--max-classes", "1", "--json")
    assert ended.code == 0, ended.err
    assert ended.document == {
        "config": "my-data.yaml",
        "schema": "my-data.schema.json",
        "target": "w",
        "target_why": "not named by --target: the last column was taken",
        "task": "regression",
        "classes": [],
        "columns": {
            "v": {"kind": "numeric", "reason": "numbers, 40 distinct values"},
            "w": {"kind": "ignored", "reason": "the target"},
        },
        "notes": [],
    }
    assert "wrote my-data.yaml and my-data.schema.json; next: mmjax train --config my-data.yaml" in ended.err
    assert load_config("my-data.yaml").name == "my-data"


def test_files_that_exist_are_kept(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "t.csv", ("v", "w"), cells(NUMBERS, WORDS))
    (tmp_path / "t.yaml").write_text("mine")
    (tmp_path / "t.schema.json").write_text("mine")
    refused = door(capsys, command, "--data", "t.csv", "--json")
    assert refused.code == 2
    assert refused.document["error"]["problems"] == [
        f"{name}: exists already; name another --output, or add --force to replace it"
        for name in ("t.schema.json", "t.yaml")
    ]
    assert (tmp_path / "t.yaml").read_text() == (tmp_path / "t.schema.json").read_text() == "mine"
    assert door(capsys, command, "--data", "t.csv", "--force").code == 0
    assert load_config("t.yaml").name == "t"
    nowhere = door(capsys, command, "--data", "t.csv", "--output", "no/where.yaml")
    assert nowhere.code == 2
    assert "no/where.yaml: expected a folder no, found none; make it, or name another --output" in nowhere.err


def test_a_marker_and_the_kind_in_the_schema_file_make_a_column_numeric(tmp_path: Path, capsys) -> None:
    """The marker alone does not, for the schema file that init wrote keeps the kind: the hint says both."""
    numbers = [str(i / 8) if i % 9 else "unknown" for i in range(40)]
    data = write_csv(tmp_path / "t.csv", ("v", "n", "y"), cells(NUMBERS, numbers, WORDS))
    ended = door(capsys, command, "--data", data, "--target", "y", "--output", tmp_path / "t.yaml", "--json")
    said = ended.document["columns"]["n"]["reason"]
    assert "'unknown'; mend them or add them to missing_markers" in said
    assert said.endswith(""" (a schema file keeps the kind: say "x-mmjax-kind": "numeric" there too)""")

    def kind() -> str:
        marked = load_config(tmp_path / "t.yaml", ["data.tabular.missing_markers=[unknown]"])
        return prepare(marked).schema.column("n").kind

    before = kind()
    schema = json.loads((tmp_path / "t.schema.json").read_text())
    schema["properties"]["n"]["x-mmjax-kind"] = "numeric"
    (tmp_path / "t.schema.json").write_text(json.dumps(schema))
    assert (before, kind()) == ("text", "numeric")


def test_a_file_name_that_is_no_model_name_gets_one(tmp_path: Path, capsys) -> None:
    data = write_csv(tmp_path / "t.csv", ("v", "w"), cells(NUMBERS, WORDS))
    ended = door(capsys, command, "--data", data, "--output", tmp_path / "my config.yaml")
    assert ended.code == 0, ended.err
    assert load_config(tmp_path / "my config.yaml").name == "my-config"
    assert f"next: mmjax train --config '{tmp_path}/my config.yaml'" in ended.out
    assert [config_stem(Path(name)) for name in ("花.csv", "-a b-.csv.gz", "X.CSV", "a.b.csv")] == [
        "model",
        "a-b",
        "X",
        "a.b",
    ]


def test_nothing_to_look_at(tmp_path: Path, capsys) -> None:
    ended = door(capsys, command, "--data", tmp_path / "no.csv", "--json")
    assert (ended.code, ended.document["error"]["type"]) == (3, "data")
    assert ended.document["error"]["message"].endswith(
        "no.csv: expected a CSV file or a folder of images, found nothing there"
    )
    assert door(capsys, command, "--data", tmp_path, "--task", "ranking").code == 2


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    images = write_images(tmp_path / "shades: #1")
    (images / "dark").rename(images / "da\nrk: #")
    made, config, prepared = take(tmp_path, images)
    assert (made.schema_file, made.target_why) == (None, "the folder of each image")
    assert config.data.image is not None
    assert (config.data.image.path, config.data.image.image_size) == (str(images), (8, 8))
    assert prepared.schema.target.classes == ("da\nrk: #", "light")
    with pytest.raises(ConfigError, match="--target: expected with a CSV only"):
        draft(images, Wish(target="x"))


def test_a_folder_whose_classes_are_numbers_is_regressed_when_asked(tmp_path: Path) -> None:
    images = write_images(tmp_path / "ages")
    (images / "dark").rename(images / "10")
    (images / "light").rename(images / "9")
    assert take(tmp_path, images)[2].schema.target.classes == ("9", "10")
    _, config, prepared = take(tmp_path, images, task="regression")
    assert config.data.image is not None
    assert config.data.image.task == prepared.schema.target.task == "regression"


def test_a_folder_with_parts_is_split_as_it_is(tmp_path: Path) -> None:
    write_images(tmp_path / "all" / "train")
    write_images(tmp_path / "all" / "test", each=3)
    made, _, prepared = take(tmp_path, tmp_path / "all")
    assert "    # the split is given: 6 test, 16 train\n" in made.config
    assert "_split" not in made.config
    assert len(prepared.split.test) == 6


def image_list(folder: Path, *extra: tuple[str, ...]) -> Path:
    write_images(folder / "pics")
    rows = [(f"{shade}/{i}.png", shade, str(i)) for shade in ("dark", "light") for i in range(8)]
    return write_csv(folder / "pics" / "list.csv", ("fi: le", "{shade}", "n"), [*rows, *extra])


def test_a_csv_of_image_paths_is_a_data_set_of_images(tmp_path: Path) -> None:
    data = image_list(tmp_path)
    made, config, prepared = take(tmp_path, data, target="{shade}")
    assert made.notes == (
        f"{data}: column 'fi: le' names images, 16 of the first 16 are there: learning from these images",
        f"{data}: columns not used, only images are learnt from: n; `data.tabular.images` learns from both",
        "--with-columns: writes a config that learns from these columns too",
    )
    assert config.data.image is not None
    assert (config.data.image.image_column, config.data.image.target_column) == ("fi: le", "{shade}")
    assert prepared.schema.target.classes == ("dark", "light")
    assert prepared.batch["image"].shape == (16, 1, 8, 8, 3)
    _, config, prepared = take(tmp_path, data, inference=Inference(max_integer_classes=4))
    assert config.data.image is not None
    assert (config.data.image.target_column, prepared.schema.target.task) == ("n", "regression")


def test_a_table_with_several_columns_of_images_is_learnt_from_as_a_whole(tmp_path: Path) -> None:
    write_images(tmp_path / "pics")
    names = [f"pics/{shade}/{i}.png" for i in range(8) for shade in ("dark", "light")]
    rows = [(name, names[-1 - i], f"{i * 7 % 5}.5", "ab"[i % 2]) for i, name in enumerate(names)]
    data = write_csv(tmp_path / "homes.csv", ("front", "ki tchen", "area", "kind"), rows)
    made, config, prepared = take(tmp_path, data)
    assert [note.split(": ")[1].split(",")[0] for note in made.notes] == [
        "column 'front' names images",
        "column 'ki tchen' names images",
    ]
    table = config.data.tabular
    assert table is not None
    assert table.images is not None
    assert (table.images.columns, table.target_column) == (("front", "ki tchen"), "kind")
    assert prepared.batch["image"].shape == (16, 2, 8, 8, 3)
    assert [column.name for column in prepared.schema.features] == ["area"]


def test_a_list_of_images_is_learnt_from_with_its_columns_when_asked(tmp_path: Path) -> None:
    data = image_list(tmp_path)
    _, config, prepared = take(tmp_path, data, target="{shade}", with_columns=True)
    table = config.data.tabular
    assert table is not None
    assert table.images is not None
    assert (table.images.columns, table.target_column) == (("fi: le",), "{shade}")
    assert prepared.batch["image"].shape == (16, 1, 8, 8, 3)
    plain = write_csv(tmp_path / "plain.csv", ("a", "kind"), [("1", "x"), ("2", "y")])
    with pytest.raises(ConfigError, match=r"--with-columns: expected a column that names image files, .*'a'"):
        draft(plain, Wish(with_columns=True))
    pair = write_csv(tmp_path / "pics" / "pair.csv", ("file", "kind"), [("dark/0.png", "x"), ("light/0.png", "y")])
    with pytest.raises(ConfigError, match="--with-columns: expected a column beside the images and the target"):
        draft(pair, Wish(with_columns=True))
    assert not any("--with-columns" in note for note in draft(pair, Wish()).notes)
    alone = write_csv(tmp_path / "pics" / "alone.csv", ("front", "back"), [("dark/0.png", "light/0.png")] * 2)
    with pytest.raises(DataError, match="expected a column to predict beside the images 'front', 'back', got none"):
        draft(alone, Wish())
    lost = write_csv(tmp_path / "lost.csv", ("file", "kind"), [("dark/0.png", "x"), ("light/0.png", "y")])
    with pytest.raises(ConfigError, match=r"found none; .*column 'file' names images, 0 of the first 2 are there$"):
        draft(lost, Wish(with_columns=True))
    with pytest.raises(ConfigError, match="--with-columns: expected with a CSV only"):
        draft(tmp_path / "pics", Wish(with_columns=True))


def test_an_image_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\0")
    with pytest.raises(DataError, match=r"a\.jpg: expected a CSV file or a folder of images, got an image; give its f"):
        draft(tmp_path / "a.jpg", Wish())


def test_a_list_with_images_without_an_answer_trains(tmp_path: Path) -> None:
    data = image_list(tmp_path, ("dark/0.png", " ", "9"), ("dark/1.png", "NA", "9"))
    made, config, prepared = take(tmp_path, data, target="{shade}")
    assert f"{data}: dropped 2 of 18 rows without a value of '{{shade}}', the first is dark/0.png" in made.notes
    line = "on_invalid: drop  # 2 are left out; files that are no readable image: fail (default), drop or report\n"
    assert line in made.config
    assert config.data.image is not None
    assert (config.data.image.on_invalid, len(prepared.names)) == ("drop", 16)


def test_a_list_with_lost_images_names_them(tmp_path: Path) -> None:
    data = image_list(tmp_path, ("gone.png", "dark", "9"))
    made, config, prepared = take(tmp_path, data, target="{shade}")
    assert f"{data}:18: gone.png: no such file" in made.notes
    assert "on_invalid: drop  # 1 is left out; files that are no readable image" in made.config
    assert (config.data.image and config.data.image.on_invalid, len(prepared.names)) == ("drop", 16)
    (tmp_path / "more").mkdir()
    many = image_list(
        tmp_path / "more", *((f"gone{i}.png", "dark", "9") for i in range(12)), *((" ", "dark", "9"),) * 11
    )
    notes = draft(many, Wish(target="{shade}")).notes
    assert f"{many}:18: gone0.png: no such file" in notes
    assert f"{many}:30: an empty cell: no such file" in notes
    assert "and 3 more that are no images" in notes
    strict = load_config(tmp_path / "made.yaml", ["data.image.on_invalid=fail"])
    with pytest.raises(DataError, match=r"1 of 17 images are missing; .* or set data.image.on_invalid to drop"):
        prepare(strict)


def test_a_cell_that_names_no_image_is_told_with_its_line(tmp_path: Path) -> None:
    data = image_list(tmp_path, ("n/a", "dark", "9"))
    made, _, prepared = take(tmp_path, data, target="{shade}")
    assert made.notes[0].startswith(f"{data}: column 'fi: le' names images, 16 of the first 17 are there")
    assert f"{data}:18: n/a: no such file" in made.notes
    assert len(prepared.names) == 16


def test_a_list_of_images_that_are_elsewhere_is_a_table(tmp_path: Path) -> None:
    data = Path(shutil.copy(image_list(tmp_path), tmp_path))
    only = write_csv(tmp_path / "only.csv", ("image", "y"), [(f"{i}.png", "ab"[i % 2]) for i in range(40)])
    with pytest.raises(DataError) as caught:
        draft(only, Wish(target="y"))
    assert caught.value.problems[0].startswith("expected at least one column to learn from, got none")
    assert "names images, 0 of the first 40 are there" in caught.value.problems[-1]
    made = draft(data, Wish(target="{shade}", schema_path="s.json"))
    assert made.notes[0] == (
        f"{data}: column 'fi: le' names images, 0 of the first 16 are there: learning from the table instead; "
        "paths are relative to the CSV file"
    )
    assert made.schema_file is not None


def test_images_without_anything_to_predict(tmp_path: Path) -> None:
    write_images(tmp_path / "pics")
    data = write_csv(tmp_path / "pics" / "l.csv", ("image",), [("dark/0.png",), ("light/0.png",)])
    with pytest.raises(DataError, match="expected a column to predict beside the images 'image', got none"):
        draft(data, Wish())


def test_what_init_writes_trains_at_once(tmp_path: Path, capsys) -> None:
    data = write_table(tmp_path / "plants.csv")
    assert door(capsys, command, "--data", data, "--output", tmp_path / "plants.yaml").code == 0
    overrides = ["training.epochs=1", "model.architecture.hidden_layers=[4]"]
    with roughly():
        result = fit(load_config(tmp_path / "plants.yaml", overrides), runs_dir=tmp_path / "runs", registry=None)
    schema = result.predictor.schema
    assert {column.name: column.kind for column in schema.columns} == dict(
        zip(HEADER, ("identifier", "numeric", "categorical", "boolean", "datetime", "ignored"), strict=True)
    )
    assert "accuracy" in result.metrics["test"]
    rows = [dict(zip(HEADER, row, strict=True)) for row in table_rows(3)]
    assert len(result.predictor.predict(rows).prediction) == 3


REAL = {
    "titanic.csv": (
        "Survived",
        {"PassengerId": "identifier", "Name": "identifier", "Sex": "categorical", "Age": "numeric"},
    ),
    "telco_churn.csv": ("Churn", {"customerID": "identifier", "Partner": "boolean", "TotalCharges": "numeric"}),
    "wine_quality.csv": ("quality", {"color": "categorical", "fixed acidity": "numeric"}),
    "penguins.csv": ("species", {"island": "categorical", "body_mass_g": "numeric", "sex": "categorical"}),
}


@pytest.mark.parametrize("name", REAL)
def test_real_tables_get_sensible_kinds(shared_data: Path, tmp_path: Path, name: str) -> None:
    target, expected = REAL[name]
    made, _, prepared = take(tmp_path, shared_data / "tabular" / name, target=target)
    kinds = {column.name: column.kind for column in made.schema.columns}
    assert {column: kinds[column] for column in expected} == expected
    assert made.schema.target.task == "classification"
    assert not any("violate" in note for note in prepared.notes)


def test_a_folder_with_bad_files_gets_a_config_that_trains(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for shade in ("dark", "light"):
        (tmp_path / "pics" / shade).mkdir(parents=True)
        for i in range(4):
            pixels = np.full((8, 8, 3), 40 if shade == "dark" else 200, np.uint8)
            (tmp_path / "pics" / shade / f"{i}.png").write_bytes(encode_png(pixels))
    (tmp_path / "pics" / "dark" / "note.jpg").write_text("no image")
    ended = door(capsys, command, "--data", "pics", "--json")
    assert ended.code == 0
    assert any("note.jpg" in note for note in ended.document["notes"])
    assert any("left out (on_invalid: drop)" in note for note in ended.document["notes"])
    assert "on_invalid: drop  # 1 is left out; files that are" in (tmp_path / "pics.yaml").read_text()
    assert len(prepare(load_config("pics.yaml")).names) == 8
