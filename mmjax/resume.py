"""Which folder a run writes to, whether it goes on with what is there, and what `run.json` says of it.

A run that did not finish is gone on with when its config and its data are those of today; what else differs is told.
"""

import contextlib
import datetime as dt
import errno
import os
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from mmjax.analysis.log import configure_logging, get_logger
from mmjax.artifact.files import plain, write_json_atomic
from mmjax.artifact.runs import LOCK, RECORD, Run, RunBusy, create_run, list_runs, load_run, locked
from mmjax.backend import Backend, versions
from mmjax.config import Config
from mmjax.config_load import config_to_dict, config_to_yaml
from mmjax.data.prepared import Prepared, split_sizes
from mmjax.errors import BundleError, ConfigError, DataError, MmjaxError, TrainingError
from mmjax.recipe import Decision
from mmjax.schema import schema_from_json

SHOWN = 10
"""Differences listed before the rest are only counted."""
DISK_REFUSES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
HARMLESS = ("audit.", "data.loading", "data.cache.", *(f"training.checkpoint.{key}" for key in ("keep", "every_")))
"""Beginnings of keys that change no bit of a run, so that a run may go on with others."""
Tell = Callable[[str], None]


class RunDiffers(DataError):
    """The data are not those that an unfinished run was trained on, or other settings follow from them."""

    def __init__(self, problems: list[str], *, fingerprint: str) -> None:
        super().__init__(problems)
        self.fingerprint = fingerprint
        """Of the data as they are; empty where they are those of the run."""


class Chosen(NamedTuple):
    """The folder of a run, held for this process."""

    folder: Path
    resumed: Run | None
    """The run as it was left; None for a new one."""
    named: bool
    """True where the user named the folder: then a difference is an error, not a new run."""


@contextlib.contextmanager
def chosen_run(
    config: Config,
    *,
    run_dir: str | Path | None,
    runs_dir: Path,
    resume: str | Path,
    tell: Tell,
    fingerprint: str = "",
    passed: Collection[Path] = (),
) -> Iterator[Chosen]:
    """Yield the Chosen folder: `resume` is `auto`, `never` or the folder of a run; with `fingerprint`, of these data.

    Runs that were `passed` are not gone on with.
    ConfigError when the folder named is of another config (with what differs) or another process is at work in it.
    """
    with contextlib.ExitStack() as held:
        if resume not in ("auto", "never"):
            if run_dir is not None:
                raise ConfigError(f"--resume {resume}: expected no --run-dir beside it, got {run_dir}; leave one out")
            yield _enter(Path(resume), config, held, what="--resume")
        elif run_dir is not None:
            folder = Path(run_dir)
            there = (folder / RECORD).is_file()
            yield _enter(folder, config, held) if there and resume == "auto" else _new(folder, held)
        else:
            found = _unfinished(config, runs_dir, held, tell, fingerprint, passed) if resume == "auto" else None
            if found is not None:
                yield Chosen(found.path, found, named=False)
            else:
                folder = create_run(runs_dir, config.name, dt.datetime.now())
                held.enter_context(locked(folder))
                yield Chosen(folder, None, named=False)


def _enter(folder: Path, config: Config, held: contextlib.ExitStack, what: str = "--run-dir") -> Chosen:
    """Return the run in a folder that the user named."""
    try:
        load_run(folder)
    except BundleError as error:
        raise ConfigError([f"{what} {folder}: no run to go on with", *error.problems]) from error
    held.enter_context(locked(folder))
    run = load_run(folder)
    if differences := config_changes(run, config):
        told = [f"{what} {folder}: this run is of another config; name another folder, or take back the changes"]
        raise ConfigError([*told, *differences])
    return Chosen(folder, run, named=True)


def _new(folder: Path, held: contextlib.ExitStack) -> Chosen:
    """Return the new or empty folder that the user named, or one in which a run was killed as it began."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names and not (LOCK in names and all(map(_just_begun, names))):
        raise ConfigError(f"--run-dir {folder}: expected a new or empty folder, got one with files in it; name another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.enter_context(locked(folder))
    except OSError as error:
        raise ConfigError(f"--run-dir {folder}: cannot be made: {error.strerror}; name another") from error
    return Chosen(folder, None, named=True)


def _just_begun(name: str) -> bool:
    """Return whether a run writes a file of this name before its `run.json`."""
    return name in (LOCK, "config.yaml") or (name.startswith(f".{RECORD}.") and name.endswith(".tmp"))


def _unfinished(
    config: Config,
    runs_dir: Path,
    held: contextlib.ExitStack,
    tell: Tell,
    fingerprint: str,
    passed: Collection[Path],
) -> Run | None:
    """Return the newest run to go on with, held; tells why the newest unfinished one is not."""
    first = True
    for run in list_runs(runs_dir, config.name):
        if run.record.status not in ("running", "killed", "interrupted", "failed") or not run.record.data_sha256:
            continue
        if fingerprint and run.record.data_sha256 != fingerprint:
            continue
        if run.path in passed:
            first = False
            continue
        differences = config_changes(run, config)
        if not differences:
            try:
                held.enter_context(locked(run.path))
            except RunBusy:
                tell(f"resume: process {run.record.process} is at work in {run.path}; this is a run of its own")
                continue
            except ConfigError as error:
                tell(f"resume: not going on: {error}")
                continue
            if (now := load_run(run.path)).record.status != "finished":
                return now
        elif first and not fingerprint and run.record.status != "running":
            told = "; ".join(differences)
            tell(f"resume: not going on with the unfinished {run.path}, which is of another config: {told}")
        first = False
    return None


def config_changes(run: Run, config: Config) -> list[str]:
    """Return what the config says otherwise than that of the run, a line for each key that may change a bit."""
    before, now = _flat(run.record.config), _flat(plain(config_to_dict(config)))
    changed = (key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key))
    keys = [key for key in changed if not key.startswith(HARMLESS)]
    lines = [f"{key}: {_shown(before.get(key))} then, {_shown(now.get(key))} now" for key in keys]
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"and {len(lines) - SHOWN} more"]


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {key: leaf for name, item in value.items() for key, leaf in _flat(item, f"{path}.{name}".strip(".")).items()}


def _shown(value: Any) -> str:
    return "by default" if value is None else str(value)


def refuse_other_data(run: Run, prepared: Prepared) -> None:
    """Raise RunDiffers, saying what changed, unless the prepared data are those of the run."""
    if run.record.data_sha256 in ("", prepared.fingerprint):
        return
    lines = [f"{run.path}: the data are not those that this run was trained on; start anew with --resume never"]
    sizes = split_sizes(prepared)
    lines += [
        f"{name} rows: {run.record.split_sizes.get(name)} then, {count} now"
        for name, count in sizes.items()
        if run.record.split_sizes.get(name) != count
    ]
    with contextlib.suppress(OSError, BundleError):
        before = schema_from_json((run.path / "schema.json").read_bytes(), str(run.path / "schema.json"))
        was = {column.name: column for column in before.columns}
        now = {column.name: column for column in prepared.schema.columns}
        changed = [name for name in dict.fromkeys([*was, *now]) if was.get(name) != now.get(name)]
        lines += (
            [f"columns of another kind, or other categories or numbers, than then: {', '.join(changed)}"]
            if changed
            else []
        )
        lines += ["the target is understood otherwise than then"] if before.target != prepared.schema.target else []
    lines = lines if len(lines) > 1 else [*lines, "the same rows and columns hold other values"]
    raise RunDiffers(lines, fingerprint=prepared.fingerprint)


def refuse_other_decisions(run: Run, then: tuple[Decision, ...], today: tuple[Decision, ...]) -> None:
    """Raise RunDiffers, saying what changed, unless what was decided of the run then is decided so today.

    A newer mmjax may have other recipes, and keys that there were not then, where only a value that does something
    differs.
    """
    before, now = ({one.key: one.value for one in decisions} for decisions in (then, today))
    keys = [key for key in now if plain(before.get(key)) != plain(now[key]) and (key in before or now[key])]
    # Another machine may be fast in another precision: that is told with all else of it
    changed = [key for key in keys if before and key != "precision" and not key.startswith(HARMLESS)]
    if changed:
        lines = [f"{run.path}: another mmjax began it; start anew with --resume never, or go on with that version"]
        lines += ["other settings follow from the same config now"]
        lines += [f"{key}: {_shown(plain(before.get(key)))} then, {_shown(plain(now[key]))} now" for key in changed]
        raise RunDiffers(lines, fingerprint="")


class Record(NamedTuple):
    """What `run.json` says of a run, kept true at every stage."""

    path: Path
    content: dict[str, Any]
    seconds: dict[str, float]

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, and log its end."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - started, 3)
        get_logger().info("stage done", stage=name, seconds=self.seconds[name])

    def save(self, **changes: Any) -> None:
        """Write `run.json` with the changes."""
        self.content.update(changes, seconds=self.seconds)
        write_json_atomic(self.path, self.content)

    def finish(self, **changes: Any) -> None:
        """Write that the run finished, and with what."""
        self.save(status="finished", **changes)
        get_logger().info("finished", model=self.content["model"], version=self.content["version"])


@contextlib.contextmanager
def recorded(run: Chosen, config: Config, tell: Tell) -> Iterator[Record]:
    """Yield the Record, and write to it how the run ended whatever happens; a finished run stays as it is."""
    before = run.resumed.record if run.resumed else None
    content = msgspec.to_builtins(before) if before else _first_record(config)
    record = Record(run.folder / RECORD, content, {})
    if before is not None and before.status == "finished":
        yield record
        return
    configure_logging(run.folder)
    try:
        (run.folder / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
        record.save(status="running", config=config_to_dict(config), process=os.getpid(), problems=[])
        yield record
    except KeyboardInterrupt:
        _save_end(record, status="interrupted")
        known = run.named or record.content.get("data_sha256")
        tell(f"resume: the same command {f'goes on with {run.folder}' if known else 'starts anew'}")
        raise
    except RunDiffers:
        _save_end(record, **(msgspec.to_builtins(before) if before else {"status": "failed"}))
        raise
    except TrainingError as error:
        _save_end(record, status="diverged", problems=list(error.problems))
        raise
    except MmjaxError as error:
        _save_end(record, status="failed", problems=list(error.problems))
        raise
    except BaseException as error:
        _save_end(record, status="failed", problems=[f"{type(error).__name__}: {error}"])
        if isinstance(error, OSError) and error.errno in DISK_REFUSES:
            told = "make it writable, with space: the same command goes on from the last checkpoint"
            raise DataError(f"run {run.folder}: cannot be written: {error.strerror}; {told}") from error
        raise
    finally:
        configure_logging(None)


def _first_record(config: Config) -> dict[str, Any]:
    now = dt.datetime.now(dt.UTC)
    return {
        "name": config.name,
        "started": now.isoformat(timespec="seconds"),
        "run_id": f"{now:%Y%m%dT%H%M%S%f}-{os.getpid()}",
    }


def _save_end(record: Record, **changes: Any) -> None:
    """Write how the run ended, if the disk lets us: the error that ended it matters more."""
    with contextlib.suppress(OSError):
        record.save(**changes)
        get_logger().info("ended", status=record.content["status"], problems=record.content.get("problems", []))


def computes(backend: Backend) -> dict[str, Any]:
    """Return what decides a run's bits beside config and data."""
    options = {f"XLA {name}": value for name, value in backend.options.items()}
    return {
        "platform": backend.platform,
        "device": backend.device,
        "threads": backend.threads,
        **options,
        **versions(),
    }


def tell_other_machine(run: Run, backend: Backend, tell: Tell) -> None:
    """Tell what differs from the machine the run began on: the result is as good, its last bits may differ."""
    before, now = run.record.computes, plain(computes(backend))
    changed = [f"{key} {before.get(key)} then, {now.get(key)} now" for key in now if before.get(key) != now.get(key)]
    if before and changed:
        tell(f"resume: the same bits are not promised: {'; '.join(changed)}")
