"""A bundle: everything a trained model needs to answer, in one folder of JSON and arrays that proves itself undamaged.

    manifest.json   format, name, task, classes, metrics, provenance, and size and sha256 of every other file
    config.json  schema.json  states.json  arrays.npz  golden.json  golden.npz  report.json  card.md
    answers.npz     where they are kept: what the model said of test rows (`mmjax.artifact.answers`)

`states.json` and `golden.json` hold structures whose arrays are in the .npz files (`mmjax.artifact.tree`). The content
digest names what the model is: config, schema, states, golden rows and metrics, not when and where it was made, so
that two identical runs give one digest. The manifest ends in the sha256 of itself with that field left empty.
"""

import json
import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from mmjax.artifact import tree
from mmjax.artifact.answers import ANSWERS, Answers, answers_from_bytes, answers_to_bytes
from mmjax.artifact.files import parse_object, plain, sync_folder, temporary_sibling, to_json, write_synced
from mmjax.artifact.golden import Golden, golden_from_files, golden_to_files
from mmjax.artifact.manifest import (
    BUNDLE_FORMAT,
    DIGESTED,
    MANIFEST,
    MEND,
    Files,
    Manifest,
    Metrics,
    content_digest,
    metrics_of,
    metrics_to_json,
    read_verified,
    sealed,
    table_of,
)
from mmjax.config import Config, is_csv
from mmjax.config_load import config_from_dict, config_to_dict
from mmjax.errors import BundleError, ConfigError
from mmjax.schema import FOLDERS_HOLD, TASK_IS_SET, Schema, schema_from_json, schema_to_json

FILES = (*DIGESTED, "report.json", "card.md")


class BundleContents(NamedTuple):
    """What a bundle holds, all of it on the host."""

    config: Config
    schema: Schema
    states: dict[str, Any]
    """Pytrees of arrays: `transform`, `model`, `output`."""
    metrics: Metrics
    golden: Golden
    report: dict[str, Any]
    """JSON values; NaN and infinities come back as None."""
    card: str
    provenance: dict[str, Any]
    """JSON values: dates, durations, host, versions, run id, fingerprint of the data. Not in the content digest."""
    answers: Answers | None = None
    """What the model said of test rows; None where none are kept. Not in the content digest."""


class Bundle(NamedTuple):
    """A loaded bundle and its content digest (sha256, 64 hexadecimal digits)."""

    contents: BundleContents
    digest: str


def save_bundle(folder: Path, contents: BundleContents) -> str:
    """Return the content digest of the bundle written to the new folder, which appears whole or not at all.

    BundleError when the folder exists or the contents cannot be kept.
    """
    if os.path.lexists(folder):
        raise BundleError(f"{folder}: exists already; bundles never change, choose a new folder")
    files = _encode(contents)
    manifest = _manifest_of(contents, files)
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_folder(folder, {MANIFEST: sealed(manifest), **files})
    return manifest.digest


def write_folder(folder: Path, files: Files) -> None:
    """Make the folder with these files, synced to disk under a temporary name and then renamed."""
    temporary = temporary_sibling(folder)
    temporary.mkdir()
    try:
        for name, data in files.items():
            write_synced(temporary / name, data)
        move_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move_folder(temporary: Path, folder: Path) -> None:
    """Rename a finished folder on the same disk; BundleError when the new name is taken."""
    sync_folder(temporary)
    try:
        temporary.rename(folder)
    except OSError as error:
        raise BundleError(f"{folder}: cannot be made: {error.strerror}; choose a new folder") from error
    sync_folder(folder.parent)


def load_bundle(folder: Path) -> Bundle:
    """Return the bundle in the folder, every byte of it checked against the manifest before it is parsed.

    BundleError lists each file that is damaged, truncated, missing, extra, a link or of a newer format.
    """
    manifest, files = read_verified(folder)
    return Bundle(_decode(manifest, files, folder), manifest.digest)


def structural_problems(folder: Path) -> list[str]:
    """Return why the bundle does not load; empty when it does."""
    try:
        load_bundle(folder)
    except BundleError as error:
        return list(error.problems)
    return []


def _encode(contents: BundleContents) -> dict[str, bytes]:
    """Return the bytes of every file but the manifest."""
    structure, arrays = {}, {}
    for name, state in contents.states.items():
        structure[name], found = tree.flatten(state, name)
        arrays |= found
    golden, golden_arrays = golden_to_files(contents.golden)
    return {
        "config.json": _json(config_to_dict(contents.config)),
        "schema.json": schema_to_json(contents.schema),
        "states.json": _json(structure),
        "arrays.npz": tree.save_arrays(arrays),
        "golden.json": golden,
        "golden.npz": golden_arrays,
        "report.json": to_json(contents.report, indent=2) + b"\n",
        "card.md": contents.card.encode(),
        **({ANSWERS: answers_to_bytes(contents.answers)} if contents.answers is not None else {}),
    }


def _json(value: object) -> bytes:
    """Return indented JSON of builtins without changing any of them."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _manifest_of(contents: BundleContents, files: Files) -> Manifest:
    """Return the manifest, its own digest still empty."""
    entries, metrics = table_of(files), metrics_to_json(contents.metrics)
    return Manifest(
        format=BUNDLE_FORMAT,
        name=contents.config.name,
        task=contents.schema.target.task,
        classes=contents.schema.target.classes,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        digest=content_digest(entries, metrics),
        metrics=metrics,
        provenance=plain(contents.provenance),
        files=entries,
        manifest_sha256="",
    )


def _decode(manifest: Manifest, files: Files, folder: Path) -> BundleContents:
    """Return the contents of checked files; BundleError where they hold something else than they should."""
    if missing := [name for name in FILES if name not in files]:
        raise BundleError([f"{folder / name}: is missing; {MEND}" for name in missing])
    arrays = tree.load_arrays(files["arrays.npz"], str(folder / "arrays.npz"))
    config = _config(files["config.json"], str(folder / "config.json"))
    return BundleContents(
        config=config,
        schema=_named_by_folders(schema_from_json(files["schema.json"], str(folder / "schema.json")), config),
        states=_states(files["states.json"], arrays, str(folder / "states.json")),
        metrics=metrics_of(manifest),
        golden=golden_from_files(files["golden.json"], files["golden.npz"], str(folder / "golden.json")),
        report=parse_object(files["report.json"], str(folder / "report.json")),
        card=_text(files["card.md"], str(folder / "card.md")),
        provenance=manifest.provenance,
        answers=answers_from_bytes(files[ANSWERS], str(folder / ANSWERS)) if ANSWERS in files else None,
    )


def _named_by_folders(schema: Schema, config: Config) -> Schema:
    """Return the Schema with the reason that classes of folders have; in older ones a `task` of the config hid it."""
    images, target = config.data.image, schema.target
    if images is None or is_csv(images.path) or target.task != "classification" or target.reason != TASK_IS_SET:
        return schema
    return msgspec.structs.replace(schema, target=msgspec.structs.replace(target, reason=FOLDERS_HOLD))


def _states(data: bytes, arrays: Mapping[str, np.ndarray], where: str) -> dict[str, Any]:
    """Return the states by name."""
    return tree.unflatten({"dict": parse_object(data, where)}, arrays, where)


def _config(data: bytes, where: str) -> Config:
    """Return the config; BundleError when it is none."""
    try:
        return config_from_dict(parse_object(data, where), where)
    except ConfigError as error:
        raise BundleError([f"{problem}; {MEND}" for problem in error.problems]) from error


def _text(data: bytes, where: str) -> str:
    """Return UTF-8 text; BundleError when it is none."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{where}: not UTF-8 text: {error}; {MEND}") from error
