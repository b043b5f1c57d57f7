"""One law over generated data: every way to ask a model gives the same answers, whatever the cells look like."""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.artifact.parity import compare_encoded, compare_paths, read_predictions
from mmjax.artifact.predictor import Predictor, make_predictor
from mmjax.artifact.sample import Sample, row_mappings, typed_rows
from mmjax.config import Config
from mmjax.config_load import config_from_dict
from mmjax.data.encode import columns_from_rows, encode
from mmjax.data.prepare import prepare
from mmjax.data.table import iter_table, read_table
from mmjax.parts import States, build_parts
from mmjax.predict import predict_file
from mmjax.recipe import resolve
from mmjax.schema import Columns, Schema
from mmjax.serving.parity import bodies, compare_server
from mmjax.serving.table_bodies import decode_table, table_columns
from tests.doors import write_csv

MARKERS = ("", "NA", "?", " ", "null", " NaN ")
ROWS = 24
ASKED = 8


class Drawn(NamedTuple):
    """The cells of one column."""

    trained: list[str]
    asked: list[str]
    declared: dict[str, Any] | None = None
    """What the schema file says of it."""


def column(known: list[str], new: list[str], declared: dict[str, Any] | None) -> st.SearchStrategy[Drawn]:
    """A column of `known` cells and gaps; rows that are asked hold `new` ones too. Its first cells are always known."""
    trained = st.lists(st.sampled_from([*known * 3, *MARKERS]), min_size=ROWS - len(known), max_size=ROWS - len(known))
    asked = st.lists(st.sampled_from([*known, *new, *MARKERS]), min_size=ASKED, max_size=ASKED)
    return st.builds(lambda cells, more: Drawn([*known, *cells], more, declared), trained, asked)


TEXT = {"type": "string", "x-mmjax-kind": "categorical"}
CELLS: dict[str, tuple[list[str], list[str], dict[str, Any] | None]] = {
    "number": (["1.50", "-3e-05", "+2", " 4 ", ".5", "0.1"], ["1e30", "-0", "007", "2.", "16777217"], None),
    "large": (["1700000000123", "1700000000124.5", "1700000009999"], ["1700000000123.0", "0"], None),
    "count": (["1", "2", "3", "10"], ["1.0", "2.00", "-4", "9007199254740993"], None),
    "fraction": (["1.0", "2.0", "4.5"], ["1", "2", "4.50"], None),
    "code": (["007", "010", "7"], ["7.0", "07", "0007", "x"], None),
    "city": (["Zürich", "Zu\u0308rich", "東京", "naïve"], ["zürich", "Tokyo", "\U0001f600"], None),
    "spaced": (["a", " a", "a,b", 'say "a"', "two\nlines", "c\rd"], ["a ", "A", "None", "Na"], None),
    "grade": (["1", "2", "1.5", "3.0"], ["1.0", "3", "1.50", "4", "true"], TEXT),
    "flag": (["yes", "No", "YES", "no"], ["Yes", " yes ", "true", "1", "maybe"], None),
    "truth": (["True", "False"], ["true", "FALSE", "t", "0"], None),
    "letter": (["t", "f"], ["T", "F", "true"], None),
    "day": (["2024-01-05", "2023-12-31T23:59:59", "2024-02-29"], ["1969-12-31", " 2024-01-06 "], None),
    "german": (["05.01.2024", "31.12.2023", "29.02.2024"], ["01.01.1900"], None),
    "constant": (["k"], ["other"], None),
}
"""Kind of column -> cells that training sees, cells it does not see, what the schema file says."""
FEATURES = tuple(name for name in CELLS if name != "constant")


class Case(NamedTuple):
    """A training table, rows to ask, and a schema file."""

    trained: dict[str, list[str]]
    asked: dict[str, list[str]]
    declared: dict[str, Any]


@st.composite
def cases(draw: Callable[..., Any], kinds: tuple[str, ...] = tuple(CELLS), most: int = 6) -> Case:
    names = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=most, unique=True))
    names += [] if set(names) & set(FEATURES) else ["count"]
    columns = {name: draw(column(*CELLS[name])) for name in names}
    target = draw(st.sampled_from([["b", "a", "10"], ["1e9", "1000000001.5", "1000000007"], ["yes", "no"]]))
    answers = [target[i % len(target)] for i in range(ROWS)]
    trained = {"id": [f"r{i:03d}" for i in range(ROWS)], **{name: c.trained for name, c in columns.items()}}
    declared = {name: c.declared for name, c in columns.items() if c.declared}
    return Case(trained | {"y": answers}, {name: c.asked for name, c in columns.items()}, declared)


def save(path: Path, columns: dict[str, list[str]]) -> Path:
    return write_csv(path, tuple(columns), list(zip(*columns.values(), strict=True)))


def config_of(case: Case, home: Path) -> Config:
    """A config for the training table, written to `home`."""
    (home / "schema.json").write_text(json.dumps({"properties": case.declared}), encoding="utf-8")
    table = {"path": str(save(home / "train.csv", case.trained)), "target_column": "y", "id_column": "id"}
    table |= {"schema": str(home / "schema.json")} if case.declared else {}
    model = {"name": "mlp", "architecture": {"hidden_layers": [4]}}
    return config_from_dict({"name": "x", "data": {"tabular": table}, "model": model}, "test")


def schema_of(case: Case, home: Path) -> Schema:
    """What training makes of the table."""
    return prepare(config_of(case, home)).schema


def joined(parts: list[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def request(schema: Schema, body: bytes) -> Columns:
    return table_columns(schema, decode_table(body))


def as_javascript(cell: Any) -> Any:
    """JavaScript has no integers: it writes 3.0 as 3."""
    return int(cell) if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53 else cell


def as_frame(cell: Any) -> Any:
    """A data frame turns whole numbers to floats when one is missing: 3 becomes 3.0, and a gap NaN."""
    return float("nan") if cell is None else float(cell) if type(cell) is int else cell


def in_order(schema: Schema, rows: list[dict[str, Any]]) -> list[list[Any]]:
    return [[row[column.name] for column in schema.features] for row in rows]


def untrained(case: Case, home: Path) -> tuple[Predictor, Any]:
    """A model with the weights it starts from, and what training would see of its rows."""
    config = config_of(case, home)
    prepared = prepare(config)
    config, _ = resolve(config, prepared.schema, train_rows=ROWS, validation_rows=2)
    parts = build_parts(config, prepared.schema)
    batch = {name: np.asarray(values) for name, values in prepared.batch.items()}
    inputs = {name: values for name, values in batch.items() if name != "label"}
    transform = parts.transform.fit(inputs)
    shapes = jax.eval_shape(lambda: parts.model.init(jax.random.key(0), parts.transform.apply(transform, inputs)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    states = States(variables, transform, parts.output.fit(batch["label"]))
    return make_predictor(config, prepared.schema, states), inputs


def table_columns_of(case: Case, home: Path) -> Columns:
    """What is asked, as the batch door reads it."""
    return read_table(save(home / "asked.csv", case.asked)).columns


def test_kinds_are_what_their_names_say(tmp_path: Path):
    """So that the laws below are about every kind."""
    case = Case({"id": [f"r{i:03d}" for i in range(ROWS)]}, {}, {"grade": TEXT})
    for name, (known, _, _) in CELLS.items():
        case.trained[name] = [known[i % len(known)] for i in range(ROWS)]
    case.trained["y"] = ["a", "b"] * (ROWS // 2)
    predictor, _ = untrained(case, tmp_path)
    assert {column.name: column.kind for column in predictor.schema.columns} == {
        "id": "identifier",
        **dict.fromkeys(("number", "large", "count", "fraction"), "numeric"),
        **dict.fromkeys(("code", "city", "spaced", "grade"), "categorical"),
        **dict.fromkeys(("flag", "truth", "letter"), "boolean"),
        **dict.fromkeys(("day", "german"), "datetime"),
        "constant": "constant",
        "y": "ignored",
    }


@given(case=cases())
@settings(max_examples=60, deadline=None)
def test_every_form_of_a_cell_is_encoded_alike(case: Case):
    with TemporaryDirectory() as folder:
        home = Path(folder)
        schema = schema_of(case, home)
        columns = table_columns_of(case, home)
        expected = encode(schema, columns)
        typed = typed_rows(schema, columns)
        forms = {
            "typed rows": columns_from_rows(typed),
            "rows of JavaScript": columns_from_rows([{k: as_javascript(v) for k, v in row.items()} for row in typed]),
            "rows of a frame": columns_from_rows([{k: as_frame(v) for k, v in row.items()} for row in typed]),
            "one request": table_columns(schema, decode_table(json.dumps({"rows": typed}).encode())),
            "in order": table_columns(schema, decode_table(json.dumps({"features": in_order(schema, typed)}).encode())),
            "requests": joined([request(schema, body) for body in bodies(schema, Sample("rows", columns), {})]),
            "text rows": joined([columns_from_rows([row]) for row in row_mappings(columns)]),
            "chunks": joined([part.columns for part in iter_table(home / "asked.csv", chunk_rows=3)]),
        }
        found = [compare_encoded(name, encode(schema, form), "text", expected) for name, form in forms.items()]
        assert [each.problem for each in found if not each.agrees] == []


@given(case=cases())
@settings(max_examples=8, deadline=None)
def test_every_way_gives_the_same_answers(case: Case):
    with TemporaryDirectory() as folder:
        home = Path(folder)
        predictor, trained_on = untrained(case, home)
        schema = predictor.schema
        again = encode(schema, read_table(home / "train.csv").columns)
        assert compare_encoded("asked", again, "trained on", trained_on).difference == 0
        source = save(home / "asked.csv", case.asked)
        sample = Sample("rows", read_table(source).columns, source)
        predict_file(predictor, source, home / "out.csv")
        door = read_predictions(home / "out.csv", schema.target)
        found = compare_paths(predictor, sample, door=door, bucket=16, allowed=1e-6, scratch=home)
        found.append(compare_server(predictor, sample))
        assert [each.problem for each in found if not each.agrees] == []
