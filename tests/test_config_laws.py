"""Laws of the config: whatever is written, the answer is a Config or a ConfigError, and a Config survives writing."""

import copy
import functools
import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.config import (
    Architecture,
    ClassWeight,
    Config,
    Data,
    ImageData,
    Model,
    Section,
    TabularData,
    Training,
)
from mmjax.config_docs import json_schema
from mmjax.config_load import config_from_dict, config_to_dict, config_to_yaml, diff_configs, load_config
from mmjax.errors import ConfigError

CONFIGS = sorted(
    path for path in (Path(__file__).resolve().parent.parent / "configs").glob("*.yaml") if path.stem != "serve"
)  # of training
laws = settings(max_examples=40, deadline=None)

texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1, max_size=12) | (
    st.sampled_from(
        ["no", "1", "1e-3", "true", "null", "~", "010", "a: b", "- x", "#", "", " x", "<<", "=", "é", "x\n"]
    )
)
names = texts.filter(bool)
positive = st.floats(1e-30, 1e30)
counts = st.integers(1, 2**31 - 1)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("laws")


def load_text(folder: Path, text: str) -> Config | None:
    """Return the config in `text`, or None when it is refused as a config should be."""
    path = folder / "c.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    config, problems = answer(path)
    assert (config is None) == bool(problems)
    assert all(str(path) in problem and "\n" not in problem for problem in problems)
    return config


def answer(path: Path, *overrides: str) -> tuple[Config | None, tuple[str, ...]]:
    try:
        return load_config(path, overrides), ()
    except ConfigError as error:
        return None, error.problems


@functools.cache
def validator() -> Any:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@functools.cache
def documents() -> tuple[dict[str, Any], ...]:
    return tuple(config_to_dict(load_config(path)) for path in CONFIGS)


tables = st.builds(
    TabularData,
    path=names,
    target_column=names.map(lambda text: "t" + text),
    ignore_columns=st.lists(texts.map(lambda text: "i" + text), max_size=3).map(tuple),
    missing_markers=st.lists(names, max_size=3).map(tuple),
    positive_class=st.none() | names,
)
images = st.builds(
    ImageData, path=names, image_size=st.tuples(st.integers(8, 4096), st.integers(8, 4096)), positive_class=names
)
trainings = st.builds(
    Training,
    epochs=counts,
    learning_rate=positive,
    gradient_clip_norm=st.none() | positive,
    class_weights=st.sampled_from(["none", "balanced"])
    | st.lists(st.builds(ClassWeight, label=texts, weight=positive), max_size=3, unique_by=lambda w: w.label).map(
        tuple
    ),
)
architectures = st.builds(Architecture, dropout=st.floats(0, 0.9), activation=st.sampled_from(["relu", "mish"]))
configs = st.builds(
    Config,
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    data=tables.map(lambda t: Data(tabular=t)) | images.map(lambda i: Data(image=i)),
    training=trainings,
    model=architectures.map(lambda a: Model(architecture=a)),
    seed=st.integers(0, 2**31 - 1),
)


@laws
@given(configs)
def test_a_config_survives_yaml_and_dicts(folder: Path, config: Config) -> None:
    again = load_text(folder, config_to_yaml(config))
    assert again == config
    assert config_from_dict(config_to_dict(config), "x") == config
    assert diff_configs(config, config) == []
    assert validator().is_valid(config_to_dict(config))


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, inner in items for p in paths_in(inner, (*path, key)))]


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A valid config document with up to three places replaced, removed, or given another key."""
    document = {"root": copy.deepcopy(draw(st.sampled_from(documents())))}
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from([p for p in paths_in(document) if p]))
        holder = functools.reduce(lambda at, key: at[key], parents, document)
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "remove" if last != "root":
                del holder[last]
            case "add" if isinstance(holder[last], dict):
                holder[last][draw(st.text(max_size=8) | st.sampled_from(["epochs", "dropout"]))] = draw(values)
            case _:
                holder[last] = draw(values)
    return document["root"]


@laws
@given(mutated())
def test_a_mutated_config_is_a_config_or_a_config_error(folder: Path, document: Any) -> None:
    text = json.dumps(document, ensure_ascii=False)
    config = load_text(folder, text)
    if config is not None:
        assert validator().is_valid(document)
        assert msgspec.convert(config_to_dict(config), Config) == config


@laws
@given(mutated())
def test_what_the_json_schema_refuses_the_loader_refuses(document: Any) -> None:
    if isinstance(document, dict) and "name" in document and not validator().is_valid(document):
        with pytest.raises(ConfigError):
            config_from_dict(document, "x")


@laws
@given(st.data())
def test_an_edited_file_is_a_config_or_a_config_error(folder: Path, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([path.read_text() for path in CONFIGS]))
    for _ in range(data.draw(st.integers(1, 3))):
        at, cut = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 20))
        inserted = data.draw(st.text("ab1 .:-[]{}#&*!|>'\"%@?,\n\t\\~é\x00", max_size=4))
        text = text[:at] + inserted + text[at + cut :]
    config = load_text(folder, text)
    assert config is None or isinstance(config, Section)


@laws
@given(
    override=st.text(max_size=20)
    | st.tuples(st.sampled_from(["seed=", "training=", "data.tabular="]), st.text(max_size=9)).map("".join)
)
def test_any_override_is_a_config_or_a_config_error(override: str) -> None:
    config, problems = answer(CONFIGS[0], override)
    assert (config is None) == bool(problems)
    assert all(problem.startswith(("--set ", str(CONFIGS[0]))) and "\n" not in problem for problem in problems)
