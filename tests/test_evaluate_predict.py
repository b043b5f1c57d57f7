"""Evaluate and predict: the doors as a user enters them, streams of any length, and one answer on every path."""

import csv
import json
import os
import shutil
import tracemalloc
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax import evaluate, predict
from mmjax.artifact.bundle import load_bundle
from mmjax.artifact.predictor import load_predictor
from mmjax.backend import compiled
from mmjax.data.encode import encode
from mmjax.data.table import read_table
from mmjax.errors import ConfigError, DataError
from mmjax.evaluate import LEAVE_OUT, evaluate_model
from mmjax.parts import build_parts
from mmjax.predict import CHUNK_ROWS, open_input, predict_file
from mmjax.train import FitResult, fit
from mmjax.training.scoring import Forward, score
from tests.doors import (
    HEADER,
    door,
    image_config,
    process,
    table_config,
    table_rows,
    write_csv,
    write_images,
    write_table,
)
from tests.rough import roughly


class Trained(NamedTuple):
    """A registered model and the folder that holds its data and registry."""

    home: Path
    result: FitResult


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model of a table."""
    home = tmp_path_factory.mktemp("flat")
    config = table_config(write_table(home / "table.csv"))
    return Trained(home, fit(config, runs_dir=home / "runs", registry=home / "registry"))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model of images."""
    home = tmp_path_factory.mktemp("seen")
    config = image_config(write_images(home / "shades"))
    return Trained(home, fit(config, runs_dir=home / "runs", registry=home / "registry"))


def read(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def inputs(path: Path, rows: list[tuple[str, ...]], *, without: tuple[str, ...] = ("id", "kind")) -> Path:
    kept = [i for i, name in enumerate(HEADER) if name not in without]
    return write_csv(path, tuple(HEADER[i] for i in kept), [tuple(row[i] for i in kept) for row in rows])


# ---- the doors


def test_a_model_with_copies_among_its_test_rows_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """What was told of the rows it was tested on is of no other rows: neither the leak nor its members alone."""
    rows = table_rows(60)
    path = write_csv(tmp_path / "table.csv", HEADER, [*rows, *((f"again{i}", *row[1:]) for i, row in enumerate(rows))])
    config = table_config(path)
    config = msgspec.structs.replace(config, training=msgspec.structs.replace(config.training, members=2))
    with roughly():
        result = fit(config, runs_dir=tmp_path / "runs", registry=tmp_path / "registry")
    assert result.report["leak"]["rows"] > 0
    assert len(result.report["members"]["each"]) == 2
    told = door(capsys, evaluate.command, "--model", result.bundle, "--data", path)
    assert told.code == 0, told.err
    assert "kept the best epoch of each member" in told.out
    assert "each alone" not in told.out
    assert "copies of training rows" not in told.out


def test_both_doors_as_processes(flat: Trained, tmp_path: Path) -> None:
    shutil.copytree(flat.home / "registry", tmp_path / "registry")
    shutil.copy(flat.home / "table.csv", tmp_path)
    scored = process("evaluate", "--model", "tiny:1", "--data", "table.csv", "--json", folder=tmp_path)
    assert scored.code == 0, scored.err
    found = scored.document
    assert (found["model"], found["version"], found["bundle"]) == ("tiny", 1, "registry/tiny/1")
    assert found["rows"] == 80
    assert 0.0 <= found["metrics"]["test"]["accuracy"] <= 1.0
    assert sum(map(sum, found["confusion"]["test"])) == 80
    assert [row["class"] for row in found["per_class"]["test"]] == ["a", "b", "c"]
    assert found["seconds"].keys() == {"load", "evaluate"}
    assert "accuracy" in scored.err
    made = process(
        *("predict", "--model", "registry/tiny/1", "--input", "table.csv", "--output", "out.csv"), folder=tmp_path
    )
    assert (made.code, made.err) == (0, "")
    gaps, *others = made.out.splitlines()
    assert gaps.startswith("table.csv: missing cells, known to the model as such: size ")
    assert others == ["table.csv: not used by the model: kind", "80 predictions in out.csv"]
    assert len(read(tmp_path / "out.csv")) == 81


def test_both_doors_tell_the_missing_cells_of_a_plain_table(flat: Trained, capsys, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(flat.home)
    rows = [list(row) for row in table_rows(20)]
    for row, name in ((1, HEADER[1]), (4, HEADER[1]), (7, HEADER[2])):
        rows[row][HEADER.index(name)] = " " if row == 4 else ""
    path = write_csv(tmp_path / "gaps.csv", HEADER, [tuple(row) for row in rows])
    sizes = sum(row[1] in ("", " ", "?") for row in rows)
    line = f"{path}: missing cells, known to the model as such: size {sizes}, colour 1"
    scored = door(capsys, evaluate.command, "--model", "tiny", "--data", path, "--json")
    assert scored.document["notes"] == [line]
    made = door(capsys, predict.command, "--model", "tiny", "--input", path, "--output", tmp_path / "o.csv", "--json")
    assert made.document["notes"] == [line]
    assert line in made.err


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (("--model", "nope"), 5, "registry: no model 'nope'; there are tiny"),
        (("--model", "tiny:9"), 5, "registry: tiny has no version 9; there are 1"),
        (("--model", "./nope"), 5, "./nope: expected the folder of a bundle, got nothing there"),
        (("--model", "registry/tiny"), 5, "registry/tiny: expected the folder of a bundle, got a folder without"),
        (("--model", "tiny", "{data}", "no.csv"), 3, "no.csv: no such file"),
        (("--model", "tiny", "{data}", "registry"), 3, "registry: expected a CSV file, got a directory"),
        (("--model", "tiny", "--colour"), 2, "No such option '--colour'."),
        ((), 2, "Missing option '--model'."),
    ],
)
def test_both_doors_say_what_is_wrong(flat: Trained, capsys, monkeypatch, argv, code: int, message: str) -> None:
    monkeypatch.chdir(flat.home)
    for command, data, others in (
        (evaluate.command, "--data", ()),
        (predict.command, "--input", ("--output", "never.csv")),
    ):
        words = [data if word == "{data}" else word for word in argv]
        words += [] if data in words else [data, "table.csv"]
        ended = door(capsys, command, *words, *others, "--json")
        assert ended.code == ended.document["exit_code"] == code
        assert ended.document["error"]["message"].startswith(message)
        assert f"error: {message}" in ended.err
        assert not Path("never.csv").exists()


def test_the_doors_in_this_process(flat: Trained, capsys, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(flat.home)
    ended = door(
        capsys, predict.command, "--model", "tiny", "--input", "table.csv", "--output", tmp_path / "o.csv", "--json"
    )
    assert ended.code == 0
    found = ended.document
    assert (found["rows"], found["ignored"], found["unknown"]) == (80, ["kind"], {})
    assert (found["model"], found["version"], found["output"]) == ("tiny", 1, str(tmp_path / "o.csv"))
    plain = door(capsys, evaluate.command, "--model", "tiny", "--data", "table.csv")
    assert plain.code == 0
    assert "Classes (this data)" in plain.out
    assert plain.out.index("it has seen most of these rows") < plain.out.index("Metrics")
    split = door(capsys, evaluate.command, "--model", "tiny", "--data", "table.csv", "--split", "test")
    assert (split.code, split.err) == (
        2,
        "error: --split: expected only with a folder of images that has parts; a CSV has none\n",
    )


# ---- what predictions look like


def test_the_first_column_says_which_row_it_is(flat: Trained, tmp_path: Path) -> None:
    predict_file(flat.result.predictor, flat.home / "table.csv", tmp_path / "named.csv")
    predict_file(flat.result.predictor, inputs(tmp_path / "in.csv", table_rows(80)), tmp_path / "numbered.csv")
    named, numbered = read(tmp_path / "named.csv"), read(tmp_path / "numbered.csv")
    assert named[0] == ["id", "prediction", "probability_a", "probability_b", "probability_c"]
    assert numbered[0] == ["row", *named[0][1:]]
    assert [row[0] for row in named[1:]] == [f"r{i}" for i in range(80)]
    assert [row[0] for row in numbered[1:]] == [str(i) for i in range(1, 81)]
    assert [row[1:] for row in named] == [row[1:] for row in numbered]


def test_the_order_of_columns_does_not_matter(flat: Trained, tmp_path: Path) -> None:
    rows = table_rows(30, seed=5)
    order = [4, 0, 3, 5, 1, 2]
    turned = write_csv(
        tmp_path / "turned.csv", tuple(HEADER[i] for i in order), [tuple(row[i] for i in order) for row in rows]
    )
    predict_file(flat.result.predictor, turned, tmp_path / "turned-out.csv")
    predict_file(flat.result.predictor, write_csv(tmp_path / "as.csv", HEADER, rows), tmp_path / "as-out.csv")
    assert (tmp_path / "turned-out.csv").read_bytes() == (tmp_path / "as-out.csv").read_bytes()


def test_regression_writes_values_that_read_back(tmp_path: Path) -> None:
    rows = [(*row[:5], f"{i / 7:.3f}") for i, row in enumerate(table_rows(60))]
    table = write_csv(tmp_path / "t.csv", HEADER, rows)
    result = fit(table_config(table), runs_dir=tmp_path / "runs", registry=None)
    predict_file(result.predictor, table, tmp_path / "out.csv")
    found = read(tmp_path / "out.csv")
    assert found[0] == ["id", "prediction"]
    values = result.predictor.predict([dict(zip(HEADER, row, strict=True)) for row in rows]).prediction
    assert [float(row[1]) for row in found[1:]] == values.tolist()


def test_a_stream_is_read_by_the_chunk_and_keeps_its_order(flat: Trained, tmp_path: Path) -> None:
    rows, length = table_rows(1000, seed=2), 60_000
    source = inputs(tmp_path / "long.csv", [rows[i % 1000] for i in range(length)])
    chunks = open_input(flat.result.predictor, source).chunks
    sizes = [len(next(chunks).identifiers)]  # by now the shape of the file is known, which takes a buffer of its own
    tracemalloc.start()
    sizes += [len(chunk.identifiers) for chunk in chunks]
    _, streamed = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (sum(sizes), max(sizes)) == (length, CHUNK_ROWS)
    assert streamed < 8 << 20  # all rows at once take twice as much
    written = predict_file(flat.result.predictor, source, tmp_path / "long-out.csv")
    assert written.rows == length
    found = read(tmp_path / "long-out.csv")
    assert [row[0] for row in found[1:]] == [str(i) for i in range(1, length + 1)]
    answers = flat.result.predictor.predict(read_table(inputs(tmp_path / "short.csv", rows)).columns)
    expected = [
        [text, *map(str, p)]
        for text, p in zip(answers.prediction, answers.probabilities, strict=True)  # type: ignore[arg-type]
    ]
    assert all(found[1 + i][1:] == expected[i % 1000] for i in range(0, length, 7))


# ---- whole or not at all


def test_a_bad_row_far_down_leaves_what_was_there(flat: Trained, tmp_path: Path) -> None:
    rows = table_rows(CHUNK_ROWS + 200)
    size, when = HEADER.index("size"), HEADER.index("when")
    for at, column, cell in ((CHUNK_ROWS + 5, size, "abc"), (CHUNK_ROWS + 90, when, "2024-13-01")):
        rows[at] = (*rows[at][:column], cell, *rows[at][column + 1 :])
    source = write_csv(tmp_path / "in.csv", HEADER, rows)
    (tmp_path / "out.csv").write_text("before")
    with pytest.raises(DataError) as caught:
        predict_file(flat.result.predictor, source, tmp_path / "out.csv")
    assert caught.value.problems == (
        f"{source}:{CHUNK_ROWS + 7}: column 'size': expected a number, got 'abc'",
        f"{source}:{CHUNK_ROWS + 92}: column 'when': expected a date (ISO 8601), got '2024-13-01'",
        "mend these cells, or leave those of the features empty that are not known",
        "or predict the others: --on-invalid report",
    )
    assert (tmp_path / "out.csv").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.csv"]


def test_the_others_are_predicted_where_rows_cannot_be_read(flat: Trained, tmp_path: Path) -> None:
    rows = table_rows(CHUNK_ROWS + 200)
    sound = write_csv(tmp_path / "sound.csv", HEADER, rows)
    size, when = HEADER.index("size"), HEADER.index("when")
    for at, column, cell in ((5, size, "abc"), (5, when, "soon"), (CHUNK_ROWS + 90, when, "2024-13-01")):
        rows[at] = (*rows[at][:column], cell, *rows[at][column + 1 :])
    source = write_csv(tmp_path / "in.csv", HEADER, rows)
    predict_file(flat.result.predictor, sound, tmp_path / "whole.csv")
    written = predict_file(flat.result.predictor, source, tmp_path / "out.csv", on_invalid="report")
    assert (written.rows, written.invalid) == (CHUNK_ROWS + 200, 2)
    whole, found = read(tmp_path / "whole.csv"), read(tmp_path / "out.csv")
    number, date = "expected a number, got 'abc'", "expected a date (ISO 8601), got"
    assert found[6] == ["r5", *4 * [""], f"column 'size': {number}; column 'when': {date} 'soon'"]
    assert found[CHUNK_ROWS + 91] == [f"r{CHUNK_ROWS + 90}", *4 * [""], f"column 'when': {date} '2024-13-01'"]
    assert [row[:2] for row in found if row[1] != ""] == [
        row[:2] for i, row in enumerate(whole) if i not in (6, CHUNK_ROWS + 91)
    ]


def test_an_output_that_cannot_be(flat: Trained, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(flat.home / "table.csv", tmp_path)
    (tmp_path / "folder").mkdir()
    os.link(tmp_path / "table.csv", tmp_path / "same.csv")
    model = ("--model", flat.result.bundle, "--input", "table.csv", "--output")
    for output, code, message in (
        ("no/out.csv", 3, "no/out.csv: cannot write predictions: No such file or directory; name another file"),
        ("table.csv/out.csv", 3, "table.csv/out.csv: cannot write predictions: Not a directory; name another file"),
        ("folder", 3, "folder: cannot write predictions: Is a directory; name another file"),
        ("same.csv", 2, "--output same.csv: expected another file than the input; name one"),
    ):
        ended = door(capsys, predict.command, *model, output, "--json")
        assert (ended.code, ended.document["error"]["message"]) == (code, message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "same.csv", "table.csv"]
    assert (tmp_path / "table.csv").read_bytes() == (flat.home / "table.csv").read_bytes()


def test_an_input_without_rows(flat: Trained, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected at least one row, got a header only"):
        predict_file(flat.result.predictor, write_csv(tmp_path / "in.csv", HEADER, []), tmp_path / "out.csv")


# ---- evaluating


def test_labels_that_are_no_class_are_named_by_line(flat: Trained, tmp_path: Path) -> None:
    rows = [*table_rows(5), ("r5", "1e99", "red", "yes", "", "d")]
    source = write_csv(tmp_path / "in.csv", HEADER, rows)
    with pytest.raises(DataError) as caught:
        evaluate_model(flat.result.predictor, source)
    assert caught.value.problems == (
        f"{source}:7: column 'kind': expected one of 'a', 'b', 'c', got 'd'",
        f"{source}:7: column 'size': expected a number, got '1e99'",
        "mend these cells, or leave those of the features empty that are not known",
        LEAVE_OUT,
    )
    with pytest.raises(DataError, match="expected the column 'kind', got size"):
        evaluate_model(flat.result.predictor, inputs(tmp_path / "no.csv", rows))
    with pytest.raises(DataError, match="unknown column 'more'"):
        evaluate_model(flat.result.predictor, write_csv(tmp_path / "m.csv", (*HEADER, "more"), [(*rows[0], "1")]))


def test_rows_of_one_class_alone_can_be_evaluated(flat: Trained, tmp_path: Path) -> None:
    rows = [row for row in table_rows(60) if row[5] == "b"]
    evaluation = evaluate_model(flat.result.predictor, write_csv(tmp_path / "b.csv", HEADER, rows))
    assert (evaluation.rows, evaluation.confusion[0]) == (len(rows), [0, 0, 0])
    assert np.isnan(evaluation.metrics["roc_auc"])
    json.dumps(evaluation.confusion, allow_nan=False)


# ---- images


def test_rows_that_cannot_be_read_are_left_out_of_the_score(flat: Trained, tmp_path: Path) -> None:
    rows = table_rows(20)
    sound = evaluate_model(flat.result.predictor, write_csv(tmp_path / "s.csv", HEADER, rows[2:]))
    number, target = HEADER.index("size"), HEADER.index("kind")
    spoilt = [list(row) for row in rows]
    spoilt[0][number], spoilt[1][target] = "much", ""
    bad = write_csv(tmp_path / "bad.csv", HEADER, spoilt)
    with pytest.raises(DataError, match=LEAVE_OUT):
        evaluate_model(flat.result.predictor, bad)
    told: list[str] = []
    found = evaluate_model(flat.result.predictor, bad, on_invalid="drop", tell=told.append)
    assert (found.rows, found.metrics) == (18, sound.metrics)
    assert any("column 'size': expected a number; 1 cells differ, the first on line 2" in line for line in told)
    assert any("kind" in line for line in told)
    spoilt[3][target] = "another"
    with pytest.raises(DataError, match="expected one of"):
        evaluate_model(flat.result.predictor, write_csv(bad, HEADER, spoilt), on_invalid="drop")


def test_images_of_a_folder_and_of_a_list_get_one_answer(seen: Trained, tmp_path: Path) -> None:
    images = seen.home / "shades"
    (images / ".hidden").write_text("x")
    folder = predict_file(seen.result.predictor, images, tmp_path / "folder.csv")
    names = [f"{shade}/{i}.png" for shade in ("light", "dark") for i in range(8)]
    listed = write_csv(images / "list.csv", ("n", "image", "label"), [(str(i), n, "?") for i, n in enumerate(names)])
    written = predict_file(seen.result.predictor, listed, tmp_path / "listed.csv")
    listed.unlink()
    assert (written.rows, written.ignored) == (16, ("n", "label"))
    assert folder.notes == (f"{images}: 1 hidden or system files skipped (.hidden)",)
    of_folder, of_list = read(tmp_path / "folder.csv"), read(tmp_path / "listed.csv")
    assert of_folder[0] == of_list[0] == ["path", "prediction", "probability_dark", "probability_light"]
    assert [row[0] for row in of_list[1:]] == names
    assert sorted(of_folder[1:]) == sorted(of_list[1:])


def test_an_image_is_a_path_bytes_or_pixels(seen: Trained) -> None:
    model = load_predictor(seen.result.bundle)
    golden = load_bundle(seen.result.bundle).contents.golden
    assert all(isinstance(cell, bytes) for cell in golden.columns["image"])  # no file is needed to load
    path = seen.home / "shades" / "dark" / "0.png"
    as_path, as_bytes = (model.predict([{"image": cell}]).probabilities for cell in (str(path), path.read_bytes()))
    np.testing.assert_array_equal(as_path, as_bytes)
    pixels = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 3)).astype(np.uint8)
    together, alone = model.predict({"image": pixels}), model.predict([{"image": pixels[299]}])
    assert together.probabilities is not None
    assert alone.probabilities is not None
    np.testing.assert_allclose(alone.probabilities, together.probabilities[299:], atol=1e-6)
    with pytest.raises(DataError, match="column 'image', row 300: is empty"):
        model.predict({"image": [*pixels[:299], b""]})


@pytest.mark.parametrize(("cell", "got"), [(None, "a missing cell"), ("", "''"), (float("nan"), "nan")])
def test_a_row_without_its_one_image_is_refused(seen: Trained, cell: Any, got: str) -> None:
    path = str(seen.home / "shades" / "dark" / "0.png")
    with pytest.raises(DataError) as refused:
        seen.result.predictor.predict([{"image": path}] * 299 + [{"image": cell}])
    told = f"column 'image', row 300: expected an image, as the model looks at nothing else, got {got}; give one, or "
    assert refused.value.problems == (f"{told}leave the row out",)


def test_every_image_that_cannot_be_read_is_named(seen: Trained, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(predict, "CHUNK_IMAGES", 4)
    images = write_images(tmp_path / "new")
    (images / "dark" / "7.png").write_bytes(b"")
    (images / "light" / "7.png").write_bytes((images / "light" / "6.png").read_bytes()[:-30])
    with pytest.raises(DataError) as caught:
        predict_file(seen.result.predictor, images, tmp_path / "out.csv")
    assert caught.value.problems == (
        f"{images}: 2 of 16 images cannot be read; mend or remove them",
        "dark/7.png: is empty",
        "light/7.png: PNG is truncated",
        "or predict the others: --on-invalid report",
    )
    listed = write_csv(tmp_path / "l.csv", ("image",), [("new/dark/0.png",), ("new/no.png",), ("",)])
    with pytest.raises(DataError) as caught:
        predict_file(seen.result.predictor, listed, tmp_path / "out.csv")
    assert caught.value.problems[1:3] == (f"{listed}:3: new/no.png: no such file", f"{listed}:4: no path of an image")
    other = write_csv(tmp_path / "o.csv", ("imgae",), [("new/dark/0.png",)])
    with pytest.raises(DataError, match=r"data.image.image_column: expected a column .* did you mean 'imgae'"):
        predict_file(seen.result.predictor, other, tmp_path / "out.csv")
    with pytest.raises(DataError, match="expected a folder of images, got nothing"):
        predict_file(seen.result.predictor, tmp_path / "nowhere", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_the_others_are_predicted_where_images_cannot_be_read(
    seen: Trained, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(predict, "CHUNK_IMAGES", 3)
    images = write_images(tmp_path / "new")
    predict_file(seen.result.predictor, images, tmp_path / "whole.csv")
    (images / "dark" / "7.png").write_bytes(b"")
    for i in (3, 4, 5, 7):  # one chunk has no image that can be read
        (images / "light" / f"{i}.png").write_bytes((images / "light" / f"{i}.png").read_bytes()[:-30])
    asked = ("--model", seen.result.bundle, "--input", images, "--output", tmp_path / "out.csv", "--json")
    ended = door(capsys, predict.command, *asked, "--on-invalid", "report")
    assert (ended.code, ended.document["rows"], ended.document["invalid"]) == (0, 16, 5)
    assert "5 of 16 rows cannot be read and have none; `problem` says why\n11 predictions in" in ended.err
    whole, found = read(tmp_path / "whole.csv"), read(tmp_path / "out.csv")
    assert found[0] == [*whole[0], "problem"]
    reasons = {"dark/7.png": "is empty"} | {f"light/{i}.png": "PNG is truncated" for i in (3, 4, 5, 7)}
    for before, after in zip(whole[1:], found[1:], strict=True):
        if before[0] in reasons:
            assert after == [before[0], "", "", "", reasons[before[0]]]
        else:
            assert (after[:2], after[-1]) == (before[:2], "")
            np.testing.assert_allclose([float(p) for p in after[2:4]], [float(p) for p in before[2:4]], atol=1e-6)
    shutil.copy(images / "dark" / "0.png", tmp_path / "ok.png")
    for i in range(8):
        for kind in ("dark", "light"):
            (images / kind / f"{i}.png").write_bytes(b"")
    ended = door(capsys, predict.command, *asked, "--on-invalid", "report")
    told = f"{images}: expected at least one row that can be read, got none of 16; `problem` in {tmp_path / 'out.csv'}"
    assert (ended.code, ended.document["error"]["problems"]) == (3, [f"{told} says why of each"])
    assert (ended.document["rows"], ended.document["invalid"], ended.document["exit_code"]) == (16, 16, 3)
    assert [row[1:] for row in read(tmp_path / "out.csv")[1:]] == 16 * [["", "", "", "is empty"]]
    listed = write_csv(tmp_path / "l.csv", ("image",), [("",), ("new/no.png",), ("ok.png",)])
    written = predict_file(seen.result.predictor, listed, tmp_path / "out.csv", on_invalid="report")
    assert (written.rows, written.invalid) == (3, 2)
    assert [row[-1] for row in read(tmp_path / "out.csv")[1:]] == ["no path of an image", "no such file", ""]
    refused = door(capsys, predict.command, *asked, "--on-invalid", "drop")
    assert (refused.code, "'drop' is not one of 'fail', 'report'" in refused.err) == (2, True)


def test_one_part_of_a_folder_of_images(seen: Trained, tmp_path: Path) -> None:
    write_images(tmp_path / "all" / "train")
    write_images(tmp_path / "all" / "test", each=3)
    assert evaluate_model(seen.result.predictor, tmp_path / "all").rows == 22
    part = evaluate_model(seen.result.predictor, tmp_path / "all", split="test")
    assert (part.rows, part.metrics) == (6, evaluate_model(seen.result.predictor, tmp_path / "all" / "test").metrics)
    with pytest.raises(DataError, match="--split validation: expected images in that part of"):
        evaluate_model(seen.result.predictor, tmp_path / "all", split="validation")
    with pytest.raises(ConfigError, match="--split test: expected a folder with train, val and test in it"):
        evaluate_model(seen.result.predictor, seen.home / "shades", split="test")


def test_classes_that_the_model_does_not_know_are_named_once(seen: Trained, tmp_path: Path) -> None:
    images = write_images(tmp_path / "new")
    (images / "light").rename(images / "ligth")
    with pytest.raises(DataError) as caught:
        evaluate_model(seen.result.predictor, images)
    told = "expected one of the model's classes (dark, light), got"
    advice = "rename these classes, or leave their images out"
    assert caught.value.problems == (
        f"{images}: {told} 'ligth' of 8 images, the first is ligth/0.png; did you mean 'light'?",
        advice,
    )
    listed = write_csv(
        tmp_path / "l.csv", ("image", "label"), [("new/dark/0.png", "dark"), ("new/dark/1.png", "black")]
    )
    with pytest.raises(DataError) as caught:
        evaluate_model(seen.result.predictor, listed)
    assert caught.value.problems == (f"{listed}: {told} 'black' of 1 image, the first on line 3", advice)
    (images / "ligth").rename(images / "light")
    (images / "dark" / "7.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 16 images cannot be read; mend or remove them\s+dark/7\.png: is empty"):
        evaluate_model(seen.result.predictor, images)


def test_images_that_cannot_be_read_are_left_out_of_the_score(seen: Trained, tmp_path: Path, capsys) -> None:
    images = write_images(tmp_path / "new")
    asked = ("--model", seen.result.bundle, "--data", images, "--json")
    (images / "dark" / "7.png").unlink()
    sound = door(capsys, evaluate.command, *asked)
    (images / "dark" / "7.png").write_bytes(b"")
    refused = door(capsys, evaluate.command, *asked)
    assert (refused.code, refused.document["error"]["problems"][-1]) == (3, LEAVE_OUT)
    ended = door(capsys, evaluate.command, *asked, "--on-invalid", "drop")
    assert (ended.code, ended.document["rows"], ended.document["metrics"]) == (0, 15, sound.document["metrics"])
    assert ended.document["notes"] == [
        f"{images}: 1 of 16 images cannot be read and are left out (on_invalid: drop): 1 is empty"
    ]
    rows = [("new/dark/0.png", "dark"), ("new/light/0.png", "light"), ("new/no.png", "light"), ("new/light/1.png", "")]
    listed = write_csv(tmp_path / "l.csv", ("image", "label"), [*rows, ("", "dark")])
    told: list[str] = []
    found = evaluate_model(seen.result.predictor, listed, on_invalid="drop", tell=told.append)
    assert (found.rows, len(told)) == (2, 2)
    for name in images.rglob("*.png"):
        name.write_bytes(b"")
    with pytest.raises(DataError, match="16 of 16 images cannot be read: none is left"):
        evaluate_model(seen.result.predictor, images, on_invalid="drop")


def test_idx_files_are_predicted_by_their_number(seen: Trained, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8)).astype(np.uint8)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(np.array([0x803, 3, 8, 8], ">u4").tobytes() + pixels.tobytes())
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(np.array([0x801, 3], ">u4").tobytes() + bytes([0, 1, 1]))
    predict_file(seen.result.predictor, tmp_path, tmp_path / "out.csv")
    assert [row[0] for row in read(tmp_path / "out.csv")] == ["path", "train/0", "train/1", "train/2"]


# ---- one answer on every path

CELLS = {
    "size": st.one_of(
        st.sampled_from(["", "?", " ", "NA", "-0", "1e3"]), st.floats(-1e4, 1e4).map(lambda x: f"{x:.4g}")
    ),
    "colour": st.one_of(st.sampled_from(["red", "green", "blue", "", "?"]), st.text("mauve, \n\"'", max_size=4)),
    "open": st.sampled_from(["yes", "no", "Yes", "", "perhaps"]),
    "when": st.one_of(st.just(""), st.dates().map(str)),
}


@pytest.fixture(scope="module")
def training_forward(flat: Trained) -> Forward:
    """The forward pass as training compiles it."""
    return compiled(build_parts(flat.result.predictor.config, flat.result.predictor.schema).forward)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.fixed_dictionaries(CELLS), min_size=1, max_size=9))
def test_rows_a_file_and_the_training_path_give_one_answer(
    flat: Trained, training_forward: Forward, rows: list[dict[str, str]]
) -> None:
    predictor, folder = flat.result.predictor, flat.home
    answers = predictor.predict(rows)
    assert answers.probabilities is not None
    source = write_csv(folder / "in.csv", tuple(CELLS), [tuple(row[name] for name in CELLS) for row in rows])
    predict_file(predictor, source, folder / "out.csv")
    written = read(folder / "out.csv")[1:]
    assert [row[1] for row in written] == answers.prediction.tolist()
    np.testing.assert_array_equal(np.array([row[2:] for row in written], np.float32), answers.probabilities)
    batch = encode(predictor.schema, read_table(source).columns)
    trained = score(training_forward, predictor.states, batch, largest=64, smallest=64)
    assert trained.probabilities is not None
    np.testing.assert_allclose(trained.probabilities, answers.probabilities, rtol=0, atol=2e-6)
