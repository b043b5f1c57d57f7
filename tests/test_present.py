"""What the terminal says at the end: exact text for small cases, safe for any class name, the same on a terminal."""

import io
import re
import shlex

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.analysis.evaluation import evaluate_scores
from mmjax.analysis.present import (
    closing_lines,
    describe_schema,
    print_results,
    result_tables,
    results_text,
    this_python,
)
from mmjax.analysis.report import Report
from mmjax.analysis.tables import Table, cell_width, printable, shorten, table_lines
from mmjax.config import Config, Data, ImageData, Policy, TabularData
from mmjax.schema import NAMES_IMAGES, Column, ImageSpec, Schema, Target
from mmjax.training.scoring import Scores


def report_of(classes: list[str], confusion: list[list[float]], **changes) -> Report:
    scores = [
        {"class": name, "precision": 0.5, "recall": 0.25, "f1": None if i == 0 else 1 / i, "support": sum(confusion[i])}
        for i, name in enumerate(classes)
    ]
    made = {
        "model": {
            "name": "iris",
            "task": "classification",
            "target": "species",
            "classes": classes,
            "positive_class": classes[1] if len(classes) == 2 else None,
        },
        "metrics": {
            "train": {"accuracy": 1.0, "log_loss": 0.00001, "f1_micro": 0.5},
            "test": {"accuracy": 0.93333, "roc_auc": None, "log_loss": 0.2},
        },
        "per_class": {"test": scores},
        "confusion": {"test": confusion},
        "data": {"split_sizes": {"train": 1105, "validation": 0, "test": 30}},
        "training": {"epochs": 40, "best_epoch": 21},
    }
    return made | changes


def diagonal(k: int) -> list[list[float]]:
    return [[10.0 if i == j else 0.0 for j in range(k)] for i in range(k)]


def test_what_is_weighted_says_so():
    for k, confused in ((3, "Confusion"), (30, "Most confused")):
        report = report_of([f"c{i}" for i in range(k)], diagonal(k))
        assert "weighted" not in results_text(report, width=80)
        text = results_text(report | {"config": {"data": {"tabular": {"weight_column": "w"}}}}, width=80)
        assert all(
            told in text for told in ("Metrics (weighted)", "Classes (test, weighted)", f"{confused} (test, weighted")
        )


def test_two_classes_read_so():
    assert results_text(report_of(["no", "yes"], [[18.0, 1.0], [1.5, 10.0]]), width=80) == (
        "iris: classification of species into 2 classes; kept epoch 21 of 40\n"
        "\n"
        "Metrics\n"
        "metric      test     train\n"
        "--------  ------  --------\n"
        "rows          30     1,105\n"
        "accuracy  0.9333    1.0000\n"
        "roc_auc        -         -\n"
        "log_loss  0.2000  1.00e-05\n"
        "precision, recall, f1, roc_auc and pr_auc are about class yes\n"
        "\n"
        "Classes (test)\n"
        "class  precision  recall      f1  support\n"
        "-----  ---------  ------  ------  -------\n"
        "no        0.5000  0.2500       -       19\n"
        "yes       0.5000  0.2500  1.0000     11.5\n"
        "\n"
        "Confusion (test; rows: true, columns: predicted)\n"
        "      no  yes\n"
        "---  ---  ---\n"
        "no    18    1\n"
        "yes  1.5   10\n"
    )


def test_regression_reads_so():
    model = {"name": "diamonds", "task": "regression", "target": "price", "classes": [], "positive_class": None}
    metrics = {"test": {"loss": 1.0, "rmse": 541.237, "mae": 1270.5, "r2": 0.98, "mape": 0.071}}
    report = report_of([], [], model=model, metrics=metrics, training={"epochs": 3, "best_epoch": 0})
    assert results_text(report, width=80) == (
        "diamonds: regression of price\n"
        "\n"
        "Metrics\n"
        "metric      test\n"
        "------  --------\n"
        "rows          30\n"
        "rmse    541.2370\n"
        "mae      1,270.5\n"
        "r2        0.9800\n"
        "mape      0.0710\n"
    )


@pytest.mark.parametrize("offset", [0.0, 1234.56])
def test_targets_of_zero_have_no_mape_and_why_is_told(offset: float):
    """Labels have lost the target's offset in f32, so that a 0 comes back as a rounding error."""
    schema = Schema(target=Target(column="price", task="regression", offset=offset))
    label = (np.array([[0.0], [2.0], [0.0], [1e-4 + offset / 1e6]]) - offset).astype(np.float32)
    batch = {"label": label, "weight": np.array([1.0, 1.0, 0.0, 1.0])}
    found = evaluate_scores(schema, Scores(label, label + 1.0, None), batch)
    assert found.zero_targets == 1
    model = {"name": "diamonds", "task": "regression", "target": "price", "classes": [], "positive_class": None}
    data = {"split_sizes": {"test": 4, "train": 9}, "zero_targets": {"test": 1, "train": 0}}
    metrics = {"test": {"rmse": 1.0, "mape": 1.12e16}, "train": {"rmse": 1.0, "mape": 0.5}}
    text = results_text(report_of([], [], model=model, metrics=metrics, data=data), width=80)
    assert "\nmape         -  0.5000\n" in text
    assert "\nmape: targets are 0 in rows (1 test), and no error is a share of 0\n" in text


def test_without_a_test_split_validation_counts():
    report = report_of(["a", "b", "c"], diagonal(3))
    report["metrics"] = {"validation": {"accuracy": 0.5}}
    report["confusion"] = {"validation": diagonal(3)}
    text = results_text(report, width=80)
    assert "metric    validation\n" in text
    assert "Confusion (validation; " in text
    assert "Classes" not in text


def test_without_any_metrics_only_the_summary_is_left():
    text = results_text(report_of(["a", "b"], diagonal(2), metrics={}), width=80)
    assert text == "iris: classification of species into 2 classes; kept epoch 21 of 40\n"


def test_names_of_labels_are_whole_where_there_is_room():
    names = ["flower_rose", "with_water", "x" * 60]
    numbers = dict.fromkeys(("threshold", "precision", "recall", "f1", "roc_auc", "pr_auc"), 0.5)
    report = report_of(names, diagonal(3))
    report["confusion"] = {}
    report["model"] |= {"task": "multilabel"}
    report["per_class"]["test"] = [{"class": name, "support": 10.0, **numbers} for name in names]
    lines = results_text(report, width=80).splitlines()
    assert any(line.startswith("flower_rose  ") for line in lines)
    longest = next(line for line in lines if line.startswith("xx"))
    assert ".." in longest
    assert 76 < len(longest) <= 80


def test_long_names_that_end_alike_are_numbered():
    names = ["a_very_long_class_name_1", "a_very_long_class_game_1", "c"]
    text = results_text(report_of(names, diagonal(3)), width=80)
    assert text.endswith(
        "Confusion (test; rows: true, columns: predicted, by number)\n"
        "                         1   2   3\n"
        "----------------------  --  --  --\n"
        "1 a_very_lo..ss_name_1  10   0   0\n"
        "2 a_very_lo..ss_game_1   0  10   0\n"
        "3 c                      0   0  10\n"
    )


def test_many_classes_show_the_worst():
    k = 25
    matrix = diagonal(k)
    matrix[3][4] = 6.0
    matrix[7][1] = 2.0
    text = results_text(report_of([f"c{i}" for i in range(k)], matrix), width=80)
    assert text.endswith(
        "Most confused (test)\n"
        "true  predicted  rows  share\n"
        "----  ---------  ----  -----\n"
        "c3    c4            6  37.5%\n"
        "c7    c1            2  16.7%\n"
        "share: of the rows of that true class; report.json has the whole matrix\n"
    )
    assert "the 10 of 25 classes with the lowest f1; report.json has all" in text
    assert re.findall(r"^(c\d+) .*0\.2500", text, re.M)[:2] == ["c0", "c24"]


def test_a_perfect_model_of_many_classes_has_no_pairs():
    assert "no row was mistaken" in results_text(report_of([f"c{i}" for i in range(25)], diagonal(25)), width=80)


NAMES = st.lists(st.text(min_size=1, max_size=40), min_size=2, max_size=22, unique=True)


@given(NAMES, st.sampled_from([80, 120]))
@settings(max_examples=50, deadline=None)
def test_any_class_names_fit_the_width_and_hold_no_control_codes(names: list[str], width: int):
    text = results_text(report_of(names, diagonal(len(names))), width=width)
    assert all(character.isprintable() or character == "\n" for character in text)
    tables = [line for line in text.splitlines()[1:] if "are about class" not in line]
    assert max(cell_width(line) for line in tables) <= width


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("names", [["[red]a[/red]", "[/bold]", ":smile:"], ["花", "\x1b[31mred", "c\nd"]])
def test_terminal_prints_the_same_content_literally(names: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    report, stream = report_of(names, diagonal(3)), Terminal()
    print_results(report, stream)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    words = [line.split() for line in results_text(report, width=80).splitlines() if not line.startswith("--")]
    assert [line.split() for line in shown.splitlines() if "──" not in line and line.strip()] == [w for w in words if w]


def test_a_stream_that_cannot_say_it_shows_escapes():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    print_results(report_of(["花", "b"], diagonal(2)), stream)
    assert b"\\u82b1" in raw.getvalue()
    assert b"\x1b" not in raw.getvalue()


@given(st.text(max_size=30), st.integers(4, 20))
@settings(max_examples=50, deadline=None)
def test_shorten_keeps_the_width_and_both_ends(text: str, width: int):
    short = shorten(printable(text), width)
    assert cell_width(short) <= width
    if cell_width(printable(text)) <= width:
        assert short == printable(text)


def test_table_columns_align_by_what_a_terminal_shows():
    table = Table("t", ("name", "n"), (("花", "1"), ("ab", "22")))
    assert table_lines(table) == ["t", "name   n", "----  --", "花     1", "ab    22"]


TABLE = Data(tabular=TabularData(path="my data/iris.csv", target_column="species"))


def test_closing_lines_name_this_very_model():
    assert closing_lines("iris:3", Config(name="iris", data=TABLE), python="python") == [
        "evaluate: python -m mmjax.evaluate --model iris:3 --data 'my data/iris.csv'",
        "predict:  python -m mmjax.predict --model iris:3 --input 'my data/iris.csv' --output predictions.csv",
        "serve:    python -m mmjax.serve --model iris:3",
    ]


def test_closing_lines_leave_out_what_training_left_out():
    policies: tuple[Policy, ...] = ("drop", "report")
    for policy in policies:
        data = Data(tabular=TabularData(path="a.csv", target_column="y", on_invalid=policy))
        evaluate, predict, _ = closing_lines("iris:3", Config(name="iris", data=data), python="python")
        assert evaluate.endswith("--on-invalid drop")
        assert predict.endswith("--on-invalid report")


def test_closing_lines_quote_and_name_another_registry():
    config = Config(name="x", data=Data(image=ImageData(path="pics; rm -rf $HOME")))
    lines = closing_lines("x:1", config, registry="/data/it's", python="/opt/my python")
    parsed = [shlex.split(line.split(":", 1)[1]) for line in lines]
    assert all(line[0] == "/opt/my python" and line[-2:] == ["--registry", "/data/it's"] for line in parsed)
    assert parsed[0][5:7] == ["--data", "pics; rm -rf $HOME"]


def test_this_python_is_what_can_be_typed_here(tmp_path, monkeypatch: pytest.MonkeyPatch):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    monkeypatch.setenv("PATH", str(python.parent))
    assert this_python() == "python"
    monkeypatch.setenv("PATH", "")
    assert this_python() == str(python)
    monkeypatch.chdir(tmp_path)
    assert this_python() == "bin/python"


def test_schema_reads_so():
    schema = Schema(
        target=Target(column="species", task="classification", classes=("a", "b"), reason="text with 2 values"),
        columns=(
            Column(name="sepal", kind="numeric", reason="all 150 values are numbers"),
            Column(name="id", kind="identifier", reason="every value is distinct, and " + "so on " * 9),
            Column(name="note", kind="text"),
        ),
    )
    assert describe_schema(schema) == (
        "column   kind        why\n"
        "species  target      classification into 2 classes; text with 2 values\n"
        "sepal    numeric     all 150 values are numbers\n"
        "id       identifier  every value is distinct, and so on so on so on so on so on\n"
        "                     so on so on so on so on\n"
        "note     text\n"
    )


def test_schema_of_images_reads_so():
    schema = Schema(target=Target(column="label", task="regression"), image=ImageSpec(height_px=32, width_px=48))
    assert describe_schema(schema) == (
        "column  kind    why\nlabel   target  regression\nimage   image   32 x 48 pixels, crop, bilinear\n"
    )


def test_columns_of_images_are_images_and_told_once():
    columns = (Column(name="front", kind="ignored", reason=NAMES_IMAGES), Column(name="size", kind="numeric"))
    schema = Schema(target=Target(column="price", task="regression"), columns=columns)
    first, drawn = (
        "column  kind     why\nprice   target   regression\n",
        "front   image    names images\nsize    numeric\n",
    )
    assert describe_schema(schema) == first + drawn
    seen = msgspec.structs.replace(schema, image=ImageSpec(columns=("front",), height_px=8, width_px=8))
    assert describe_schema(seen) == first + drawn.replace("names images", "8 x 8 pixels, crop, bilinear")


def test_baselines_leave_out_what_does_not_fit():
    metrics = {"subset_accuracy": 0.5, "hamming_loss": 0.25, "log_loss": 0.3, "roc_auc": 0.9}
    one = {"name": "logistic regression", "chosen": "each label its own", "metrics": metrics, "seconds": 0.1}
    found = {"network": metrics, "baselines": [one], "split": "test", "rows": 30, "verdict": "no worse", "notes": []}
    report = report_of(["a", "b"], diagonal(2), baselines=found)

    def heading(width: int) -> list[str]:
        (table,) = (table for table in result_tables(report, width=width) if table.title.startswith("Baselines"))
        assert all(cell_width(line) <= width for line in table_lines(table)[1:])
        return list(table.header)

    assert heading(120) == ["model", "setting", *metrics, "seconds"]
    assert heading(85) == ["model", *metrics, "seconds"]
    assert heading(50) == ["model", "subset_accuracy", "hamming_loss"]
