"""Run folders `ROOT/NAME/YYYYmmdd-HHMMSS`: made, listed, read and pruned.

A run writes `run.json` (status, times, config, in the end model, version and metrics) and one line of `metrics.jsonl`
per epoch; both are read here as they stand, also while it runs or after it was killed.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from mmjax.artifact.files import NAME, parse_object, valid_name
from mmjax.artifact.files import write_json_atomic as write_json_atomic
from mmjax.errors import BundleError, ConfigError, did_you_mean

STAMP = re.compile(r"[0-9]{8}-[0-9]{6}(-[0-9]+)?")
RECORD = "run.json"
RESOLVED = "resolved.yaml"
"""The config with all that the recipe decided; written once the data are known."""
DECISIONS = "decisions.json"
"""Why each field of it is as it is."""
LOCK = "lock"
REPORT = "report.json"
JUST_MADE_S = 2.0
"""Between the making of a folder and its lock."""
LOOK_S = 0.25
"""Who lists runs holds each lock for a moment, to see whether it is free: so long it is asked for again."""


class RunBusy(ConfigError):
    """A process is at work in the run."""


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What `run.json` says; what it says besides is not needed here."""

    name: str
    status: str
    """`running`, `finished`, `failed`, `interrupted`, `diverged` (a loss was not finite); as listed, also `killed`."""
    started: str = ""
    seconds: Any = None
    """Seconds in all, or by stage."""
    model: str | None = None
    version: int | None = None
    metrics: dict[str, dict[str, float | None]] = {}
    config: dict[str, Any] = {}
    problems: tuple[str, ...] = ()
    run_id: str = ""
    """Under which its model is registered, once."""
    process: int = 0
    data_sha256: str = ""
    """Fingerprint of the prepared data; empty until they are."""
    split_sizes: dict[str, int] = {}
    bundle: str | None = None
    computes: dict[str, Any] = {}
    """Versions, device and threads: where any differs, so may the bits."""


class Run(NamedTuple):
    """A run folder as it stands."""

    ref: str
    """`NAME/YYYYmmdd-HHMMSS`."""
    path: Path
    record: RunRecord


def create_run(root: Path, name: str, now: datetime) -> Path:
    """Return the new folder of a run that starts `now`; `-2`, `-3` ... is added when that second has one already."""
    parent = root / valid_name(name, "a run")
    parent.mkdir(parents=True, exist_ok=True)
    stamp, count = f"{now:%Y%m%d-%H%M%S}", 1
    while True:
        folder = parent / (stamp if count == 1 else f"{stamp}-{count}")
        try:
            folder.mkdir()
        except FileExistsError:
            count += 1
        else:
            return folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder for this process while the block lasts; RunBusy when another process holds it.

    The system frees it when the process ends, however it ends. ConfigError where it cannot be held.
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(f"run {folder}: cannot be locked: {error.strerror}; name another") from error
    try:
        _lock(descriptor, folder)
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    """Lock the file; RunBusy when another process does not let go of it, ConfigError where there are no locks."""
    until = time.monotonic() + LOOK_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() < until:
                time.sleep(0.01)
                continue
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise RunBusy(f"run {folder}: process {holder} is at work in it; wait for it, or name another") from error
        except OSError as error:
            told = "put runs where the file system has locks"
            raise ConfigError(f"run {folder}: cannot be locked: {error.strerror}; {told}") from error
        break
    if not os.fstat(descriptor).st_nlink:
        raise ConfigError(f"run {folder}: removed just now by another process; start again")


def is_locked(folder: Path) -> bool:
    """Return whether a process is at work in the run folder."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def list_runs(root: Path, name: str = "") -> list[Run]:
    """Return the runs, of one name if given, newest first.

    One without a readable `run.json` has the status `unknown` and says why in `problems`.
    """
    folders = [folder for folder in _folders(root) if not name or folder.parent.name == name]
    return [_load_or_say(folder) for folder in sorted(folders, key=_age, reverse=True)]


def load_run(path: Path) -> Run:
    """Return the run in the folder; BundleError when its `run.json` is missing or damaged."""
    file = path / RECORD
    if not file.is_file():
        raise BundleError(f"{file}: is missing; name the folder of a run")
    try:
        record = msgspec.convert(parse_object(file.read_bytes(), str(file)), RunRecord)
    except msgspec.ValidationError as error:
        raise BundleError(f"{file}: not the record of a run: {error}; prune the run") from error
    if record.status == "running" and not is_locked(path):
        record = msgspec.structs.replace(record, status="killed")
    return Run(f"{path.parent.name}/{path.name}", path, record)


def find_run(root: Path, ref: str) -> Run:
    """Return the run `NAME/YYYYmmdd-HHMMSS`, the newest of `NAME`, or that in a folder; BundleError with options."""
    runs = list_runs(root)
    for run in runs:
        if ref in (run.ref, run.path.parent.name):
            return load_run(run.path)
    if (Path(ref) / RECORD).is_file():
        return load_run(Path(ref))
    names = dict.fromkeys(option for run in runs for option in (run.path.parent.name, run.ref))
    there = f"there are {', '.join(dict.fromkeys(run.path.parent.name for run in runs))}" if runs else "it has none"
    hint = f"{there}{did_you_mean(ref, names)}"
    if ":" in ref or "@" in ref:
        hint = "that names a registered model; use `registry compare` or `registry show`"
    raise BundleError(f"no run '{ref}' in {root}; {hint}")


def read_history(path: Path) -> list[dict[str, Any]]:
    """Return the epochs in `metrics.jsonl` of a run folder, in order; None stands for NaN.

    A line that a killed run left half written is skipped; of an epoch that a resumed run did again, the later counts.
    """
    file = path / "metrics.jsonl"
    rows = map(_row, file.read_text("utf-8", "replace").splitlines()) if file.is_file() else ()
    by_epoch = {row.get("epoch", index): row for index, row in enumerate(rows) if row is not None}
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def read_report(path: Path) -> dict[str, Any]:
    """Return the report of a run folder; empty where the run has none (yet). BundleError when it is damaged."""
    file = path / REPORT
    return parse_object(file.read_bytes(), str(file)) if file.is_file() else {}


def prune(root: Path, keep: int, *, name: str = "", dry_run: bool = False) -> list[Run]:
    """Return the runs removed (with `dry_run`: that would be): all but the newest `keep` of each name.

    Runs that a process is at work in are neither counted nor removed. What the registry holds is a copy and stays.
    """
    kept: dict[str, int] = {}
    removed = []
    for run in list_runs(root, name):
        if _goes_on(run):
            continue
        kept[run.path.parent.name] = kept.get(run.path.parent.name, 0) + 1
        if kept[run.path.parent.name] > keep:
            removed.append(run)
    return [run for run in removed if dry_run or _remove(run.path)]


def _remove(folder: Path) -> bool:
    """Return whether the run folder was removed: not where a process has taken the run up meanwhile."""
    try:
        with locked(folder):  # so that none takes it up while it goes
            shutil.rmtree(folder)
    except RunBusy:
        return False
    return True


def _goes_on(run: Run) -> bool:
    """Return whether a process is at work in the run, or it has just been made."""
    just_made = run.record.status == "unknown" and time.time() - run.path.stat().st_mtime < JUST_MADE_S
    return is_locked(run.path) or just_made


def _load_or_say(folder: Path) -> Run:
    """Return the run, of status `unknown` when it cannot be read."""
    try:
        return load_run(folder)
    except BundleError as error:
        record = RunRecord(name=folder.parent.name, status="unknown", problems=error.problems)
        return Run(f"{folder.parent.name}/{folder.name}", folder, record)


def _folders(root: Path) -> Iterator[Path]:
    """Yield the run folders under the root, links and other things left out."""
    for parent in root.iterdir() if root.is_dir() else ():
        if NAME.fullmatch(parent.name) and parent.is_dir():
            for folder in parent.iterdir():
                if STAMP.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
                    yield folder


def _age(folder: Path) -> tuple[str, int, str]:
    """Return a key that sorts run folders by time, `-10` after `-9`."""
    day, second, *count = folder.name.split("-")
    return f"{day}-{second}", int(count[0]) if count else 1, folder.parent.name


def _row(line: str) -> dict[str, Any] | None:
    """Return a line of `metrics.jsonl`; None when it is not whole."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
