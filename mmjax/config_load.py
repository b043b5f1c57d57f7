"""Config files, overrides and dicts as a `Config`, with everything that is wrong in them at once.

The way of a config: YAML text -> nodes (`config_yaml`) -> one tree over `extends` and `--set` (`config_tree`)
-> structs (`config_structure`) -> combinations (`config_rules`).
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import msgspec
import yaml

from mmjax.config import Config
from mmjax.config_rules import find_conflicts
from mmjax.config_structure import Findings, build_config, key_paths
from mmjax.config_tree import leaves, merge, nodes_of, parse_override, place_of, read_tree, tree_of
from mmjax.config_yaml import Node, resolve_scalar
from mmjax.errors import ConfigError


class LoadedConfig(NamedTuple):
    """A config, and for each key path what set it: `configs/iris.yaml:12`, `--set` or `default`."""

    config: Config
    origins: dict[str, str]


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Return the config in the YAML file `path`, with `overrides` such as `training.epochs=5` laid over it in order.

    `extends: base.yaml` (relative to the file that says so) inherits from another file: mappings merge, lists and
    scalars replace, null takes an inherited key away. `name` defaults to the file's stem. ConfigError lists
    everything that is wrong, each with its file and line.
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(
            f"load_config: expected the path of a YAML file, got {type(path).__name__}; of a dict "
            "`mmjax.config_load.config_from_dict(content, 'notebook')` makes a Config"
        )
    return load_config_with_origins(path, overrides).config


def load_config_with_origins(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> LoadedConfig:
    """Return what `load_config` returns, with the origin of every value."""
    file = os.fspath(path)
    problems: list[str] = []
    overlays = [parse_override(override, problems) for override in overrides]
    try:
        tree = read_tree(file, problems)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from error
    for overlay in overlays:
        tree = merge(tree, overlay) if overlay else tree
    nodes = dict(leaves(tree))
    config = _check(_with_name(tree, file), _given(nodes), problems)
    return LoadedConfig(config, {key: _origin(nodes.get(key)) for key in key_paths()})


@contextlib.contextmanager
def with_places(origins: Mapping[str, str]) -> Iterator[None]:
    """Name in a ConfigError about a key what set it, as `load_config` does, where `origins` tells."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError([_placed(problem, origins) for problem in error.problems]) from error


def _placed(problem: str, origins: Mapping[str, str]) -> str:
    origin = origins.get(problem.partition(":")[0], "default")
    where = {"default": "", "--set": "--set "}.get(origin, f"{origin}: ")
    return where + problem


def expect_config(config: object, *, by: str) -> None:
    """Raise ConfigError where what the function called `by` was given is no Config."""
    if isinstance(config, Config):
        return
    got, todo = type(config).__name__, f"{by}(mmjax.load_config('config.yaml'))"
    if isinstance(config, str | os.PathLike):
        got, todo = f"the path {os.fspath(config)!r}", f"{by}(mmjax.load_config({os.fspath(config)!r}))"
    elif isinstance(config, Mapping):
        todo = f"{by}(mmjax.config_load.config_from_dict(content, 'notebook'))"
    raise ConfigError(f"{by}: expected a Config, got {got}; call {todo}")


def expect_files(config: Config) -> None:
    """Raise ConfigError for a file that a run of this config begins with and that is not there."""
    path = config.model.pretrained
    if path is not None and not os.path.isfile(path):
        got = "a folder" if os.path.isdir(path) else "nothing"
        raise ConfigError(
            f"model.pretrained: expected a file, got {got} at {path}; paths are relative to {os.getcwd()}"
        )


def config_from_dict(content: Mapping[str, Any], where: str) -> Config:
    """Return the config in a dict such as a bundle holds; ConfigError names `where` and the key of all that is wrong.

    Unlike in a file, a value that would have no effect is no error: a written config holds every default.
    """
    problems: list[str] = []
    tree = tree_of(content, where, "", problems)
    return _check(tree, frozenset(), problems)


def _check(tree: Node, given: frozenset[str], problems: list[str]) -> Config:
    findings = Findings(problems, set())
    config = build_config(tree, findings)
    for paths, message, _idle in find_conflicts(config, given):
        if not any(_is_broken(path, findings.broken) for path in paths):
            problems.append(f"{place_of(tree, paths[0])}: {paths[0]}: {message}")
    if problems:
        raise ConfigError(problems)
    return config


def _is_broken(path: str, broken: Iterable[str]) -> bool:
    return any(path == b or path.startswith(f"{b}.") or b.startswith(f"{path}[") or not b for b in broken)


def _with_name(tree: Node, file: str) -> Node:
    stem = PurePath(file).stem
    default = {"name": Node(stem, f"{file} (the file's stem, as it gives no name)", stem)}
    return tree if "name" in nodes_of(tree) else tree._replace(value=nodes_of(tree) | default)


def _given(nodes: Mapping[str, Node]) -> frozenset[str]:
    return frozenset(path for path, node in nodes.items() if node.value is not None)


def _origin(node: Node | None) -> str:
    if node is None:
        return "default"
    return "--set" if node.where.startswith("--set ") else node.where


def format_origins(loaded: LoadedConfig) -> str:
    """Return one line per key path: its value as YAML and what set it; a value the recipe decides is `(recipe)`."""
    values = dict(_flatten(config_to_dict(loaded.config)))
    rows = [(path, _shown(values, path), origin) for path, origin in loaded.origins.items()]
    rows = [row for row in rows if row[1]]
    first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
    return "\n".join(f"{path:<{first}}  {value:<{second}}  {origin}" for path, value, origin in rows)


def _shown(values: Mapping[str, Any], path: str) -> str:
    """Return the value at `path` in one line; nothing for the keys of a section that is absent."""
    if path in values:
        return _dump(values[path], flow=True)
    section = path.rpartition(".")[0]
    return "(recipe)" if not section.startswith("data.") or any(p.startswith(f"{section}.") for p in values) else ""


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return the config as dicts, lists and scalars; fields that a recipe still decides are left out."""
    return msgspec.json.decode(msgspec.json.encode(config))


def config_to_yaml(config: Config) -> str:
    """Return the config as a YAML file that `load_config` takes: `config_to_recipe`."""
    return _dump(config_to_recipe(config), flow=False)


def config_to_recipe(config: Config) -> dict[str, Any]:
    """Return what a file holds that `load_config` takes: every value, except those that do nothing in this config.

    What was loaded reads back equal; of what a recipe resolved, the values it gave to idle options stay out.
    """
    content = config_to_dict(config)
    given = frozenset(path for path, value in _flatten(content) if value is not None)
    for conflict in find_conflicts(config, given):
        if conflict.idle:
            _remove(content, conflict.paths[0])
    return content


def _remove(content: dict[str, Any], path: str) -> None:
    section, _, rest = path.partition(".")
    if rest:
        _remove(content[section], rest)
    else:
        content.pop(section, None)


def diff_configs(a: Config, b: Config) -> list[tuple[str, Any, Any]]:
    """Return (key path, value in `a`, value in `b`) where they differ; None stands for absent."""
    left, right = (dict(_flatten(config_to_dict(config))) for config in (a, b))
    differing = (path for path in key_paths() if left.get(path) != right.get(path))
    return [(path, left.get(path), right.get(path)) for path in differing]


def config_keys(config: Config) -> frozenset[str]:
    """Return the key paths that have a value in a config, also null."""
    return frozenset(path for path, _ in _flatten(config_to_dict(config)))


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, f"{path}.{key}" if path else key)
    else:
        yield path, value


class _Dumper(yaml.SafeDumper):
    """Writes texts so that `config_yaml` reads them as texts, and lists on one line."""


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if resolve_scalar(text) == text and text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


def _write_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.SequenceNode:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)


_Dumper.add_representer(str, _write_text)
_Dumper.add_representer(list, _write_list)


def _dump(value: Any, *, flow: bool) -> str:
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=10**6,
        default_flow_style=flow,
    )
    return text.removesuffix("\n").removesuffix("\n...") if flow else text
