import json

import jsonschema
import numpy as np
import pytest

from mmjax.data.infer import infer_schema
from mmjax.data.schema_file import DeclaredColumn, read_schema_file, schema_file_text
from mmjax.errors import DataError


def write(folder, content) -> str:
    path = folder / "schema.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def problems_of(folder, content) -> list[str]:
    path = write(folder, content)
    with pytest.raises(DataError) as caught:
        read_schema_file(path)
    return [line.replace(path, "s.json") for line in caught.value.problems]


def test_every_keyword_is_read(tmp_path):
    path = write(
        tmp_path,
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {
                "age": {"type": "integer", "minimum": 0, "maximum": 120, "description": "years"},
                "zip": {"type": ["string", "null"], "pattern": "^[0-9]{5}$"},
                "size": {"enum": ["S", "M", None, 3, 1.5, True]},
                "when": {"type": "string", "format": "date"},
                "free": {"x-mmjax-kind": "text"},
            },
            "required": ["age"],
        },
    )
    found = read_schema_file(path)
    assert found.path == path
    assert found.columns == {
        "age": DeclaredColumn("age", "integer", minimum=0.0, maximum=120.0, required=True),
        "zip": DeclaredColumn("zip", "string", pattern="^[0-9]{5}$"),
        "size": DeclaredColumn("size", enum=("S", "M", "3", "1.5", "true")),
        "when": DeclaredColumn("when", "string", format="date"),
        "free": DeclaredColumn("free", kind="text"),
    }


def test_all_faults_come_at_once_with_the_column_named(tmp_path):
    properties = {
        "a": {"type": "numeric", "minimun": 0},
        "b": {"minimum": "0", "maximum": True},
        "c": {"minimum": 5, "maximum": 1, "pattern": "("},
        "d": {"enum": []},
        "e": {"enum": ["x", "x"], "x-mmjax-kind": "numeric"},
        "f": {"enum": [["x"]], "format": "time", "x-mmjax-kind": "catgorical"},
        "g": 3,
        "h": {"pattern": 3},
    }
    assert problems_of(tmp_path, {"type": "array", "properties": properties, "required": ["ab"], "oneOf": []}) == [
        "s.json: unknown keyword 'oneOf'; expected one of $schema, $id, title, description, type, properties, required",
        's.json: type: expected "object" (a row), got "array"',
        "s.json: required: unknown column 'ab'; list it under properties; did you mean 'a'?",
        "s.json: column 'a': unknown keyword 'minimun'; expected one of type, enum, minimum, maximum, pattern, "
        "format, x-mmjax-kind, title, description; did you mean 'minimum'?",
        "s.json: column 'a': type: expected one of number, integer, string, boolean, got \"numeric\"; "
        "did you mean 'number'?",
        "s.json: column 'b': minimum: expected a number, got \"0\"",
        "s.json: column 'b': maximum: expected a number, got true",
        "s.json: column 'c': expected minimum <= maximum, got 5 and 1",
        "s.json: column 'c': pattern: expected a regular expression, got \"(\" "
        "(missing ), unterminated subpattern at position 0)",
        "s.json: column 'd': enum: expected a list of texts, numbers or booleans, got []",
        's.json: column \'e\': enum: expected every value once, got ["x", "x"]',
        "s.json: column 'e': enum: expected only where x-mmjax-kind is categorical or boolean, got numeric",
        "s.json: column 'f': x-mmjax-kind: expected one of numeric, categorical, boolean, datetime, identifier, "
        "constant, text, ignored, got \"catgorical\"; did you mean 'categorical'?",
        "s.json: column 'f': format: expected one of date, date-time, got \"time\"; did you mean 'date-time'?",
        "s.json: column 'f': enum: expected a list of texts, numbers or booleans, got [[\"x\"]]",
        "s.json: column 'g': expected an object of keywords, got 3",
        "s.json: column 'h': pattern: expected a regular expression, got 3 (first argument must be string or compiled "
        "pattern)",
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[1]", "s.json: expected a JSON object with the key 'properties'"),
        ('{\n"a": }', "s.json:2: expected JSON, got Expecting value at column 6"),
        ('{"properties": {"a": {}, "a": {}}}', "s.json: expected every key once, got 'a' twice"),
        ('{"properties": {"a": {"minimum": NaN}}}', "s.json: expected finite numbers, got NaN"),
        ('{"properties": []}', "s.json: properties: expected an object with a key for each column"),
        ('{"required": "a"}', "s.json: required: expected a list of column names"),
    ],
)
def test_files_that_are_no_schema(tmp_path, content, expected):
    assert problems_of(tmp_path, content) == [expected]


def test_a_missing_file():
    with pytest.raises(DataError, match=r"none\.json: the schema file cannot be read \(No such file"):
        read_schema_file("none.json")


def table() -> dict[str, np.ndarray]:
    n = 40
    rows = {
        "id": [f"u{i}" for i in range(n)],
        "age": [str(20 + i % 7) for i in range(n)],
        "zip": [f"0{i % 5}123" for i in range(n)],
        "plan": ["free" if i % 3 else "paid" for i in range(n)],
        "active": ["yes" if i % 2 else "no" for i in range(n)],
        "since": [f"2024-01-{1 + i % 9:02d}" for i in range(n)],
        "paid": [f"{1 + i % 9:02d}.01.2024" for i in range(n)],
        "weight": ["1.5"] * n,
        "y": [str(i % 3) for i in range(n)],
    }
    return {name: np.array(cells, dtype=object) for name, cells in rows.items()}


def test_what_is_written_declares_the_same_schema_and_is_json_schema(tmp_path):
    columns = table()
    schema = infer_schema(columns, target_column="y", id_column="id", weight_column="weight")
    text = schema_file_text(schema)
    jsonschema.Draft202012Validator.check_schema(json.loads(text))
    declared = read_schema_file(write(tmp_path, text))
    again = infer_schema(columns, target_column="y", id_column="id", weight_column="weight", declared=declared)
    assert [(c.name, c.kind, c.datetime_format) for c in again.columns] == [
        (c.name, c.kind, c.datetime_format) for c in schema.columns
    ]
    assert again.target.classes == ("0", "1", "2")
    assert json.loads(schema_file_text(again))["required"] == ["y"]


def test_rules_survive_writing(tmp_path):
    rules = {
        "age": {"type": "integer", "minimum": 0, "maximum": 99, "x-mmjax-kind": "numeric"},
        "plan": {"type": "string", "enum": ["paid", "free", "gift"]},
        "zip": {"pattern": "^0"},
        "y": {"type": "number", "minimum": 0},
    }
    declared = read_schema_file(write(tmp_path, {"properties": rules, "required": ["age", "y"]}))
    schema = infer_schema(table(), target_column="y", declared=declared)
    assert schema.target.task == "regression"
    written = json.loads(schema_file_text(schema))
    kept = {name: {k: v for k, v in written["properties"][name].items() if k in rules[name]} for name in rules}
    assert kept == rules
    assert written["required"] == ["age", "y"]
