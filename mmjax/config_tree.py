"""One tree of nodes from a config file, the files it extends, and `--set` overrides."""

import json
import os.path
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmjax.config_words import describe
from mmjax.config_yaml import MAX_CHARACTERS, MAX_DEPTH, Node, check_text, join_path, parse_yaml
from mmjax.errors import ConfigError, did_you_mean


def read_tree(path: str, problems: list[str]) -> Node:
    """Return the mapping in the file `path`, laid over the mapping of the file it extends, and so on.

    Adds to `problems` what does not stop reading; ConfigError when a file cannot be read or is no mapping.
    """
    return _read_extended(path, "", (), problems)


def _read_extended(path: str, asked_by: str, children: tuple[str, ...], problems: list[str]) -> Node:
    root = _read_mapping(path, asked_by, problems)
    entries = nodes_of(root)
    parent = entries.pop("extends", None)
    own = root._replace(value=entries)
    if parent is None:
        return own
    if not isinstance(parent.value, str) or not parent.value:
        raise ConfigError(f"{parent.where}: extends: expected the path of a YAML file, got {describe(parent)}")
    base_path = os.path.normpath(os.path.join(os.path.dirname(path), parent.value))
    chain = (*children, path)
    if _identity(base_path) in map(_identity, chain):
        circle = " -> ".join((*chain, base_path))
        raise ConfigError(f"{parent.where}: extends: expected a file that does not lead back here, got {circle}")
    if len(chain) == MAX_DEPTH:
        raise ConfigError(f"{parent.where}: extends: expected at most {MAX_DEPTH} files in a chain, got more")
    return merge(_read_extended(base_path, f"{parent.where}: extends: ", chain, problems), own)


def _identity(path: str) -> str:
    return os.path.realpath(path)


def _read_mapping(path: str, asked_by: str, problems: list[str]) -> Node:
    root, found = parse_yaml(_read_text(path, asked_by), lambda line: f"{path}:{line}")
    problems.extend(found)
    if root.value is None:
        raise ConfigError(f"{path}: the file is empty; expected at least the key `data`")
    if not isinstance(root.value, dict):
        raise ConfigError(f"{root.where}: expected a mapping of keys such as `data:`, got {describe(root)}")
    return root


def _read_text(path: str, asked_by: str) -> str:
    try:
        with open(path, "rb") as file:
            return _decode(file.read(4 * MAX_CHARACTERS + 1), path)
    except FileNotFoundError as error:
        raise ConfigError(f"{asked_by}{path}: cannot be read: no such file{_near_file(path)}") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{asked_by}{path}: cannot be read: expected a YAML file, got a folder") from error
    except OSError as error:
        raise ConfigError(f"{asked_by}{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL in the path
        raise ConfigError(f"{asked_by}{path!a}: cannot be read: {error}") from error


def _decode(data: bytes, path: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: expected UTF-8 text, got the byte {data[error.start]:#04x}") from error


def _near_file(path: str) -> str:
    folder = Path(path).parent
    if not folder.is_dir():
        return f" (the folder {folder} does not exist)"
    return did_you_mean(Path(path).name, [entry.name for entry in folder.glob("*.y*ml")])


def parse_override(override: str, problems: list[str]) -> Node | None:
    """Return `a.b=value`, the value in YAML, as a mapping `{a: {b: value}}`; None and a problem if it is not that."""
    where = f"--set {override if override.isprintable() else ascii(override)}"
    path, equals, text = override.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys) or len(keys) > MAX_DEPTH:
        problems.append(f"{where}: expected KEY=VALUE with a key such as training.epochs")
        return None
    if keys[0] == "extends":
        problems.append(f"{where}: `extends` belongs in a file; give that file as the config")
        return None
    try:
        node, found = parse_yaml(text, lambda line: where)
    except ConfigError as error:
        problems.extend(error.problems)
        return None
    problems.extend(found)
    node = node._replace(where=where)
    for key in reversed(keys):
        node = Node({key: node}, where)
    return node


def merge(base: Node, overlay: Node) -> Node:
    """Return `overlay` laid over `base`: mappings merge, anything else replaces, null takes the base's key away."""
    if not isinstance(base.value, dict) or not isinstance(overlay.value, dict):
        return overlay
    merged = dict(base.value)
    for key, node in overlay.value.items():
        if key not in merged:
            merged[key] = node
        elif node.value is None:
            del merged[key]
        else:
            merged[key] = merge(merged[key], node)
    return base._replace(value=merged)


def tree_of(value: Any, where: str, path: str, problems: list[str]) -> Node:
    """Return a value made of dicts, lists and scalars as a tree whose every node stands at `where`."""
    match value:
        case None | bool() | float():
            return Node(value, where, json.dumps(value))
        case int() if abs(value) < 10**100:  # Python refuses to write thousands of digits
            return Node(value, where, str(value))
        case str():
            problems.extend(check_text(value, path, where))
            return Node(value, where, value)
        case list() | tuple() if path.count("[") < MAX_DEPTH:
            return Node(tuple(tree_of(x, where, f"{path}[{i}]", problems) for i, x in enumerate(value)), where)
        case Mapping() if path.count(".") < MAX_DEPTH:
            return Node(
                {str(key): tree_of(x, where, join_path(path, str(key)), problems) for key, x in value.items()}, where
            )
        case _:
            problems.append(
                f"{where}: {path}: expected a JSON value, got {type(value).__name__}, too large or nested too deeply"
            )
            return Node(None, where)


def nodes_of(tree: Node) -> dict[str, Node]:
    """Return the nodes of a mapping by key, in a new dict; empty when it is no mapping."""
    return dict(tree.value) if isinstance(tree.value, dict) else {}


def leaves(tree: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """Yield every key path with its node, except the paths of mappings."""
    if not isinstance(tree.value, dict):
        yield path, tree
        return
    for key, node in tree.value.items():
        yield from leaves(node, join_path(path, key))


def place_of(tree: Node, path: str) -> str:
    """Return where the key `path` was written, or the nearest section around it that was."""
    where = tree.where
    for key in path.split("."):
        if not isinstance(tree.value, dict) or key not in tree.value:
            return where
        tree = tree.value[key]
        where = tree.where
    return where
