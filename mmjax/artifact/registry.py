"""The registry: a folder of immutable, numbered bundles with aliases.

    ROOT/NAME/N/              a bundle, never changed; numbers count up and are never used twice
    ROOT/NAME/versions.json   number -> run id, date, content digest; date of deletion
    ROOT/NAME/aliases.json    alias -> number now, numbers before; a log of every change

Every change happens under a lock on ROOT/NAME/.lock and is one rename: any number of processes may register, promote
and read at once, and one that is killed leaves at worst a hidden `.tmp` folder that the next change clears away.
Reading takes no lock, so a registry may be read-only. POSIX only (flock).

A reference is `NAME:3`, `NAME@alias`, or `NAME`: the version that is `production` if there is one, else the newest.
"""

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from mmjax.artifact.bundle import write_folder
from mmjax.artifact.files import NAME, parse_object, valid_name, write_json_atomic
from mmjax.artifact.manifest import read_manifest, read_whole
from mmjax.errors import BundleError, did_you_mean

PRODUCTION = "production"
VERSIONS, ALIASES, LOCK = "versions.json", "aliases.json", ".lock"

T = TypeVar("T")

Check = Callable[[Path], list[str]]
"""A function from the folder of a bundle to what is wrong with it."""


class ModelRef(NamedTuple):
    """One version of a model and its bundle."""

    name: str
    version: int
    path: Path

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the registry knows of a number it has given away."""

    run_id: str
    registered: str
    """ISO 8601, UTC."""
    digest: str
    """Content digest of the bundle."""
    deleted: str | None = None


class Alias(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The version an alias stands for, and those it stood for before, oldest first."""

    version: int
    previous: tuple[int, ...] = ()


class Change(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One change of an alias; `version` is None where the alias was taken away."""

    when: str
    action: str
    alias: str
    version: int | None


class Aliases(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The aliases of a model and how they came about."""

    aliases: dict[str, Alias] = {}
    log: tuple[Change, ...] = ()


# ---- reading


def list_models(root: Path) -> list[str]:
    """Return the names of the models that have a version, sorted."""
    folders = root.iterdir() if root.is_dir() else ()
    return sorted(path.name for path in folders if NAME.fullmatch(path.name) and list_versions(root, path.name))


def list_versions(root: Path, name: str) -> list[ModelRef]:
    """Return the versions of a model, oldest first; empty when there is no such model."""
    folder = root / valid_name(name, "a model")
    deleted = {number for number, record in read_records(root, name).items() if record.deleted}
    numbers = sorted(int(path.name) for path in _numbered(folder))
    return [ModelRef(name, number, folder / str(number)) for number in numbers if number not in deleted]


def read_records(root: Path, name: str) -> dict[int, Record]:
    """Return what is known of every number ever given away, deleted ones too."""
    path = root / name / VERSIONS
    if not path.is_file():
        return {}
    return {int(number): record for number, record in _convert(path, dict[str, Record]).items() if number.isdecimal()}


def read_aliases(root: Path, name: str) -> Aliases:
    """Return the aliases of a model with their history."""
    path = root / name / ALIASES
    return _convert(path, Aliases) if path.is_file() else Aliases()


def resolve(root: Path, ref: str) -> ModelRef:
    """Return the version that `NAME:3`, `NAME@alias` or `NAME` stands for; BundleError with the options otherwise."""
    name, mark, which = _parse(ref)
    versions = {model.version: model for model in list_versions(root, name)}
    if not versions:
        models = list_models(root)
        there = f"there are {', '.join(models)}" if models else "it has none; train one first"
        raise BundleError(f"{_named(root)}: no model '{name}'; {there}{did_you_mean(name, models)}")
    aliases = {alias: found.version for alias, found in read_aliases(root, name).aliases.items()}
    if mark == "@":
        if which not in aliases:
            promote_it = _promoting(root, versions[max(versions)], which)
            there = f"there are {', '.join(aliases)}" if aliases else f"promote one with `{promote_it}`"
            raise BundleError(f"{_named(root)}: {name} has no alias '{which}'; {there}{did_you_mean(which, aliases)}")
        number = aliases[which]
    else:
        number = int(which) if which else aliases.get(PRODUCTION, max(versions))
    if number not in versions:
        there = ", ".join(map(str, versions))
        raise BundleError(f"{_named(root)}: {name} has no version {number}; there are {there}")
    return versions[number]


def verify(root: Path, ref: str, checks: Sequence[Check]) -> list[str]:
    """Return what is wrong with a version: the problems of the first check that finds any, empty when it is sound.

    Before `checks` comes one of our own: the bundle must be the one that was registered.
    """
    return _verified(root, resolve(root, ref), checks)


def _verified(root: Path, model: ModelRef, checks: Sequence[Check]) -> list[str]:
    """Return the problems of the first check that finds any."""
    record = read_records(root, model.name).get(model.version)

    def is_the_registered(folder: Path) -> list[str]:
        try:
            digest = read_manifest(folder).digest
        except BundleError as error:
            return list(error.problems)
        if record is None or digest == record.digest:
            return []
        return [f"{folder}: expected content digest {record.digest} as registered, got {digest}; restore it or retrain"]

    return next(filter(None, (check(model.path) for check in (is_the_registered, *checks))), [])


# ---- changing


def check_writable(root: Path) -> None:
    """Raise BundleError when no model could be registered in `root`; a folder made to find out is taken away again."""
    made = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
        if made:
            root.rmdir()
    except OSError as error:
        reason = "Not a directory" if isinstance(error, FileExistsError) else error.strerror
        raise BundleError(f"{_named(root)}: cannot be written: {reason}; name another") from error


def register(root: Path, name: str, bundle_folder: Path, *, run_id: str) -> int:
    """Return the number under which a copy of the bundle now stands in the registry: one more than any ever given.

    The same `run_id` again returns the same number and changes nothing. BundleError when the bundle is damaged.
    """
    with _locked(root, name, make=True) as folder:
        records = read_records(root, name)
        known = [n for n, record in records.items() if record.run_id == run_id and not record.deleted]
        if known and (folder / str(known[0])).is_dir():
            return known[0]
        # A record without its folder is a registration that was killed between the two; it keeps its number.
        number = known[0] if known else max([0, *records, *(int(path.name) for path in _numbered(folder))]) + 1
        manifest, files = read_whole(bundle_folder)
        new = Record(run_id=run_id, registered=_now(), digest=manifest.digest)
        _write_records(folder, {**records, number: new})
        write_folder(folder / str(number), files)
    return number


def promote(root: Path, ref: str, alias: str = PRODUCTION, *, checks: Sequence[Check] = ()) -> ModelRef:
    """Return the version to which `alias` now points; BundleError when `verify` finds something wrong with it.

    Here a plain `NAME` means its newest version. What the alias stood for before is kept for `rollback`.
    """
    valid_name(alias, "an alias")
    name, mark, _ = _parse(ref)
    versions = list_versions(root, name)
    model = resolve(root, ref) if mark or not versions else versions[-1]
    _refuse(f"{model} is not promoted", _verified(root, model, checks))
    with _locked(root, name) as folder:
        # Checking takes seconds and needs no lock; meanwhile somebody may have deleted the version.
        model = resolve(root, str(model))
        found = read_aliases(root, name)
        now = found.aliases.get(alias)
        if now is None or now.version != model.version:
            previous = (*now.previous, now.version) if now else ()
            _write_alias(folder, found, "promote", alias, Alias(version=model.version, previous=previous))
    return model


def rollback(root: Path, name: str, alias: str = PRODUCTION, *, checks: Sequence[Check] = ()) -> ModelRef:
    """Return the version to which `alias` points again: the one before; deleted ones are passed over.

    BundleError when there is none before, or `checks` find something wrong with it.
    """
    valid_name(alias, "an alias")
    with _locked(root, name) as folder:
        found = read_aliases(root, name)
        versions = {model.version: model for model in list_versions(root, name)}
        before = found.aliases[alias].previous if alias in found.aliases else ()
        before = tuple(number for number in before if number in versions)
        if not before:
            raise BundleError(f"{_named(root)}: {name}@{alias} has no version before it; promote one by its number")
        model = versions[before[-1]]
        _refuse(f"{name}@{alias} is not rolled back to {model.version}", _verified(root, model, checks))
        _write_alias(folder, found, "rollback", alias, Alias(version=model.version, previous=before[:-1]))
    return model


def delete(root: Path, ref: str, *, force: bool = False) -> ModelRef:
    """Return the version that was deleted; its number is never used again.

    `ref` must say which one, by number or alias. BundleError when an alias points to it, unless `force` takes the
    alias away too.
    """
    name, mark, _ = _parse(ref)
    if not mark:
        raise BundleError(f"{ref}: expected NAME:VERSION, as `delete` takes nothing for granted; say which version")
    with _locked(root, name) as folder:
        model = resolve(root, ref)
        found = read_aliases(root, name)
        pointing = [alias for alias, now in found.aliases.items() if now.version == model.version]
        if pointing and not force:
            raise BundleError(f"{model}: is {', '.join(pointing)}; promote another version first, or force it")
        for alias in pointing:
            found = _write_alias(folder, found, "delete", alias, None)
        records = read_records(root, name)
        unknown = Record(run_id="", registered=_now(), digest="")
        gone = msgspec.structs.replace(records.get(model.version, unknown), deleted=_now())
        _write_records(folder, {**records, model.version: gone})
        _clear(folder)
    return model


# ---- the files


def _named(root: Path) -> str:
    """Return a registry for the begin of a message.

    >>> _named(Path("registry")), _named(Path("models"))
    ('registry', 'registry models')
    """
    return str(root) if root.name == "registry" else f"registry {root}"


def _promoting(root: Path, model: ModelRef, alias: str) -> str:
    """Return the command that promotes a model.

    >>> _promoting(Path("registry"), ModelRef("iris", 1, Path()), "staging")
    'mmjax registry promote iris:1 --alias staging'
    """
    words = ["mmjax", "registry", "promote", str(model)]
    words += [] if alias == PRODUCTION else ["--alias", alias]
    words += [] if root == Path("registry") else ["--registry", str(root)]
    return shlex.join(words)


def _parse(ref: str) -> tuple[str, str, str]:
    """Return (name, `:` or `@` or nothing, version or alias) of a reference; BundleError when it is none."""
    match = re.fullmatch(r"([^:@]*)(?:(:)([1-9][0-9]{0,8})|(@)([^:@]+))?", ref)
    if match is None or not NAME.fullmatch(match[1]):
        raise BundleError(
            f"{ref!r}: expected NAME, NAME:VERSION or NAME@ALIAS, such as iris:3; name a registered model"
        )
    return match[1], match[2] or match[4] or "", match[3] or match[5] or ""


def _numbered(folder: Path) -> Iterator[Path]:
    """Yield the folders of versions."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if re.fullmatch(r"[1-9][0-9]{0,8}", path.name) and path.is_dir():
            yield path


def _convert(path: Path, kind: type[T]) -> T:
    """Return a file of the registry as `kind`; BundleError when it is damaged."""
    content = parse_object(path.read_bytes(), str(path))
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise BundleError(f"{path}: damaged: {error}; restore it") from error


@contextlib.contextmanager
def _locked(root: Path, name: str, *, make: bool = False) -> Iterator[Path]:
    """Give the folder of a model while no other process changes it, cleared of what killed ones left."""
    folder = root / valid_name(name, "a model")
    if not make and not folder.is_dir():
        resolve(root, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise BundleError(f"{_named(root)}: cannot be written: {error.strerror or error}; name another") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _clear(folder)
        yield folder
    finally:
        os.close(descriptor)


def _clear(folder: Path) -> None:
    """Remove temporary files of killed processes and the folders of deleted versions; call it under the lock."""
    records = read_records(folder.parent, folder.name)
    deleted = (path for path in _numbered(folder) if (found := records.get(int(path.name))) and found.deleted)
    for path in [*deleted, *folder.glob(".*.tmp")]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _write_records(folder: Path, records: Mapping[int, Record]) -> None:
    """Replace the table of numbers."""
    write_json_atomic(folder / VERSIONS, {str(number): records[number] for number in sorted(records)})


def _write_alias(folder: Path, found: Aliases, action: str, alias: str, now: Alias | None) -> Aliases:
    """Return the aliases after one has changed, as written; None takes it away."""
    kept = {name: value for name, value in found.aliases.items() if name != alias}
    change = Change(when=_now(), action=action, alias=alias, version=now.version if now else None)
    aliases = Aliases(aliases=kept | ({alias: now} if now else {}), log=(*found.log, change))
    write_json_atomic(folder / ALIASES, aliases)
    return aliases


def _refuse(what: str, problems: Sequence[str]) -> None:
    """Raise BundleError when there are problems."""
    if problems:
        raise BundleError([f"{what}: {problem}" for problem in problems])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
