"""The manifest: what each file of a bundle must be, to the byte; nothing is parsed before it is checked."""

import hashlib
import json
import math
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from mmjax.artifact.files import parse_object, to_json
from mmjax.errors import BundleError

BUNDLE_FORMAT = 1
MANIFEST = "manifest.json"
DIGESTED = ("config.json", "schema.json", "states.json", "arrays.npz", "golden.json", "golden.npz")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9]+)+")
SEAL = b'"manifest_sha256": "'
MEND = "restore it or retrain"

Metrics = dict[str, dict[str, float]]
"""Split (`train`, `validation`, `test`) -> metric -> value; NaN where a metric is undefined."""

Files = Mapping[str, bytes]
"""The bytes of a bundle's files by name, the manifest not among them."""


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Size and digest of one file."""

    sha256: str
    bytes: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table of contents."""

    format: int
    name: str
    task: str
    classes: tuple[str, ...]
    created: str
    """ISO 8601, UTC."""
    digest: str
    metrics: dict[str, dict[str, float | str | None]]
    """NaN is null, infinities are `"inf"` and `"-inf"`."""
    provenance: dict[str, Any]
    files: dict[str, FileEntry]
    manifest_sha256: str


Upgrade = Callable[[dict[str, Any], Files], tuple[dict[str, Any], Files]]
"""A pure function from the manifest and files of one format to those of the next. The new manifest may not depend on
the files, for lists read manifests alone."""

UPGRADES: Mapping[int, Upgrade] = MappingProxyType({})
"""Format -> the function that makes the next format of it."""


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest alone, checked against its own digest; BundleError when it is damaged or newer."""
    return _upgraded(_parsed(folder), {}, folder)[0]


def read_verified(folder: Path) -> tuple[Manifest, Files]:
    """Return manifest and files in today's format, each byte checked before any file is parsed.

    BundleError lists every file that is damaged, truncated, missing, extra or a link, or names a newer format.
    """
    found, files = _verified(folder)
    return _upgraded(found, files, folder)


def read_whole(folder: Path) -> tuple[Manifest, Files]:
    """Return the manifest in today's format, and the checked bytes of all files as they are, the manifest's too."""
    found, files = _verified(folder)
    return _upgraded(found, {}, folder)[0], {MANIFEST: _read(folder / MANIFEST), **files}


def content_digest(entries: Mapping[str, FileEntry], metrics: object) -> str:
    """Return the sha256 over what the model is: the digests of its files, and its metrics as in the manifest."""
    named = {"files": {name: entries[name].sha256 for name in DIGESTED if name in entries}, "metrics": metrics}
    return _sha256(json.dumps(named, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def table_of(files: Files) -> dict[str, FileEntry]:
    """Return size and digest of each file."""
    return {name: FileEntry(_sha256(data), len(data)) for name, data in files.items()}


def metrics_to_json(metrics: Metrics) -> dict[str, dict[str, float | str | None]]:
    """Return metrics as the manifest keeps them."""
    return {split: {name: _metric(float(value)) for name, value in values.items()} for split, values in metrics.items()}


def _metric(value: float) -> float | str | None:
    """Return a metric as JSON keeps it."""
    return value if math.isfinite(value) else None if math.isnan(value) else str(value)


def metrics_of(manifest: Manifest) -> Metrics:
    """Return the metrics as floats."""
    return {
        split: {name: math.nan if value is None else float(value) for name, value in values.items()}
        for split, values in manifest.metrics.items()
    }


def sealed(manifest: Manifest) -> bytes:
    """Return the manifest as indented JSON, its last and empty field filled with the sha256 of itself."""
    unsealed = to_json(manifest, indent=2) + b"\n"
    before, field, after = unsealed.rpartition(SEAL)
    return before + field + _sha256(unsealed).encode() + after


def _unsealed(data: bytes, own: str) -> bytes:
    """Return the bytes of a manifest before it was sealed with the digest `own`; something else when it was not."""
    before, _, after = data.rpartition(SEAL + own.encode("utf-8", "surrogatepass") + b'"')
    return before + SEAL + b'"' + after


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _parsed(folder: Path) -> dict[str, Any]:
    """Return the manifest as JSON values, after checking its format and its seal."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such bundle folder; train again or check the path")
    data = _read(path)
    found = parse_object(data, str(path))
    number = found.get("format")
    if type(number) is not int or number < 1:
        raise BundleError(f"{path}: expected a bundle format number, got {str(number)[:40]}; {MEND}")
    if number > BUNDLE_FORMAT:
        raise BundleError(
            f"{path}: bundle format {number} is newer than this mmjax reads ({BUNDLE_FORMAT}); install a newer mmjax"
        )
    own = str(found.get("manifest_sha256"))
    if (got := _sha256(_unsealed(data, own))) != own:
        raise BundleError(f"{path}: expected sha256 {own[:64]}, got {got}; {MEND}")
    return found


def _verified(folder: Path) -> tuple[dict[str, Any], Files]:
    """Return the manifest's JSON values and the bytes of its files, each checked; nothing is upgraded yet."""
    found = _parsed(folder)
    entries = _entries(found, folder)
    files = _read_files(folder, entries)
    if (digest := content_digest(entries, found.get("metrics"))) != found.get("digest"):
        told = f"expected content digest {found.get('digest')}, got {digest}"
        raise BundleError(f"{folder / MANIFEST}: {told}; {MEND}")
    return found, files


def _read(path: Path) -> bytes:
    """Return the bytes of a regular file; BundleError when it is none."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise BundleError(f"{path}: expected a plain file, got a link or something else; {MEND}")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BundleError(f"{path}: is missing; {MEND}") from error
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}; {MEND}") from error


def _entries(found: dict[str, Any], folder: Path) -> dict[str, FileEntry]:
    """Return the manifest's table of files; BundleError when it has none or names other than plain file names."""
    path = folder / MANIFEST
    try:
        entries = msgspec.convert(found.get("files"), dict[str, FileEntry])
    except msgspec.ValidationError as error:
        raise BundleError(f"{path}: no table of files: {error}; {MEND}") from error
    if bad := [name for name in entries if not FILE_NAME.fullmatch(name) or name == MANIFEST]:
        raise BundleError([f"{path}: {name!r} is no plain file name; {MEND}" for name in bad])
    return entries


def _read_files(folder: Path, entries: Mapping[str, FileEntry]) -> dict[str, bytes]:
    """Return the bytes of every file in the manifest; BundleError lists all that are not as it says, and extra ones."""
    files, problems = {}, []
    for name, entry in entries.items():
        try:
            files[name] = _checked(folder / name, entry)
        except BundleError as error:
            problems += error.problems
    for name in sorted({path.name for path in folder.iterdir()} - entries.keys() - {MANIFEST}):
        problems.append(f"{folder / name}: is not in the manifest; take it out")
    if problems:
        raise BundleError(problems)
    return files


def _checked(path: Path, entry: FileEntry) -> bytes:
    """Return the bytes of a file that is as the manifest says; BundleError otherwise."""
    data = _read(path)
    if len(data) != entry.bytes:
        raise BundleError(f"{path}: expected {entry.bytes} bytes, got {len(data)}; {MEND}")
    if (got := _sha256(data)) != entry.sha256:
        raise BundleError(f"{path}: expected sha256 {entry.sha256}, got {got}; {MEND}")
    return data


def _upgraded(found: dict[str, Any], files: Files, folder: Path) -> tuple[Manifest, Files]:
    """Return manifest and files in today's format."""
    for number in range(found["format"], BUNDLE_FORMAT):
        found, files = UPGRADES[number](found, files)
    try:
        return msgspec.convert(found, Manifest), files
    except msgspec.ValidationError as error:
        raise BundleError(f"{folder / MANIFEST}: not a manifest: {error}; {MEND}") from error
