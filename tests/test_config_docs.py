"""The documentation and the JSON Schema are what the structs say, and every config file of the repository is true."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from msgspec import inspect

from mmjax.config import METRIC_NAMES, Config
from mmjax.config_docs import description_of, json_schema, markdown, write_docs
from mmjax.config_load import load_config, load_config_with_origins
from mmjax.config_structure import key_paths, section_of, walk_fields

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = sorted(path for path in (REPOSITORY / "configs").glob("*.yaml") if path.stem != "serve")  # of training
SCHEMA = jsonschema.Draft202012Validator(json_schema())


def test_written_docs_are_up_to_date(tmp_path: Path) -> None:
    write_docs(tmp_path)
    for name in ("CONFIG.md", "config.schema.json"):
        assert (REPOSITORY / "docs" / name).read_text(encoding="utf-8") == (tmp_path / name).read_text(
            encoding="utf-8"
        ), f"docs/{name} is behind the structs; run `python -m mmjax.config_docs`"


def test_every_row_of_a_table_has_the_cells_of_its_header() -> None:
    bars = 0
    for line in markdown().splitlines():
        found = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert found == bars or not bars or not found, line
        bars = found


def test_every_key_and_section_is_described() -> None:
    undescribed = [path for path, field in walk_fields(inspect.type_info(Config)) if not description_of(field)]
    assert undescribed == []
    assert section_docs(inspect.type_info(Config)) == []
    assert len(key_paths()) == len(set(key_paths())) > 60


def section_docs(kind: inspect.Type) -> list[str]:
    section = section_of(kind)
    if section is None:
        return []
    own = [] if (section.cls.__doc__ or "").strip() else [section.cls.__name__]
    return own + [name for field in section.fields for name in section_docs(field.type)]


def test_every_key_is_in_the_markdown() -> None:
    text = markdown()
    sections = {part.partition("`")[0]: part for part in text.split("\n## `")[1:]}
    for path in key_paths():
        section, _, key = path.rpartition(".")
        assert f"| `{key}` |" in (sections[section] if section else text), path
    assert all(f"`{name}`" in text for name in METRIC_NAMES)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_loads_and_fits_the_json_schema(path: Path) -> None:
    loaded = load_config_with_origins(path)
    assert loaded.config.name == path.stem
    assert str(path) in loaded.origins["seed"]
    document = yaml.safe_load(path.read_text(encoding="utf-8").replace("e-", ".0e-"))
    assert list(SCHEMA.iter_errors(document)) == []


def test_the_sample_configs_point_at_the_sample_data() -> None:
    for name in ("iris", "images"):
        data = load_config(REPOSITORY / "configs" / f"{name}.yaml").data
        source = data.tabular or data.image
        assert source is not None
        assert (REPOSITORY / source.path).exists(), source.path


MINIMAL = {"data": {"tabular": {"path": "a", "target_column": "y"}}}


@pytest.mark.parametrize(
    "document",
    [
        MINIMAL,
        {"data": {"image": {"path": "a", "image_size": [32, 32]}}, "threads": None},
        {"extends": "base.yaml"},
        {"extends": "base.yaml", "data": {"tabular": {"train_split": 0.5}}, "name": "x"},
        MINIMAL | {"training": {"class_weights": [{"label": "a", "weight": 1}], "learning_rate": 1}},
    ],
)
def test_the_json_schema_accepts(document: dict[str, Any]) -> None:
    assert list(SCHEMA.iter_errors(document)) == []


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"name": "x"},
        {"data": {"tabular": {"path": "a"}}},
        {"data": {"image": {}}},
        {"extends": 5},
        {"extends": "base.yaml", "sede": 1},
        {"extends": "base.yaml", "training": {"class_weights": [{"label": "a"}]}},
        MINIMAL | {"training": {"epoch": 1}},
        MINIMAL | {"training": {"epochs": 0}},
        MINIMAL | {"training": {"epochs": "5"}},
        MINIMAL | {"training": {"early_stopping": {"enabled": "no"}}},
        MINIMAL | {"model": {"architecture": {"stages": [1] * 5}}},
        MINIMAL | {"device": "cuda"},
        MINIMAL | {"name": "a b"},
    ],
)
def test_the_json_schema_refuses(document: dict[str, Any]) -> None:
    assert not SCHEMA.is_valid(document)


def test_the_json_schema_is_closed_and_described_at_every_level() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for name, definition in schema["$defs"].items():
        assert definition["additionalProperties"] is False, name
        assert definition["description"], name
        undescribed = [key for key, value in definition["properties"].items() if "description" not in value]
        assert all("$ref" in json.dumps(definition["properties"][key]) for key in undescribed), (name, undescribed)
    assert schema["$defs"]["Training"]["properties"]["momentum"]["default"] == 0.9
