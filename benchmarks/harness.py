"""What every benchmark shares: running a process, its peak memory, medians and spread, one JSON file out."""

import datetime as dt
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SHARED_DATA = Path("../shared/data")
"""The larger data sets, relative to the repository root; they are no part of the repository."""

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")

LOAD_BEFORE = round(os.getloadavg()[0], 2)
"""Processes that wanted a core in the minute before: much above 0, and the figures are of a busy machine."""

BUSY = 0.5
"""A load average above which the figures are not to be trusted."""

UNWANTED = (
    *("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "JAX_COMPILATION_CACHE_DIR"),
    *("NPROC", "PJRT_NPROC", "XLA_FLAGS", "GLIBC_TUNABLES"),
)
"""Variables of this shell that would change what a user of a plain shell sees."""


class Finished(NamedTuple):
    """A process that ended well."""

    document: dict[str, Any]
    """The JSON object on the last line of its standard output."""
    seconds: float
    """Wall clock from before its start to after its end."""
    cpu_seconds: float
    """User and system time of all its threads: what neighbours on the machine disturb least."""
    peak_mb: float
    """Largest resident set, in units of 1e6 bytes."""


class Figure(NamedTuple):
    """One number that a benchmark measured, once per repeat."""

    name: str
    unit: str
    values: tuple[float, ...]
    sense: Literal["<=", ">=", ""] = ""
    """Which side of `bound` is good; empty where nothing is promised."""
    bound: float = float("nan")


def python_module(module: str, *arguments: str | Path) -> list[str]:
    """Return the command that runs `module` with this interpreter."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment without what disturbs a measurement, and with `extra`."""
    return {name: value for name, value in os.environ.items() if name not in UNWANTED} | dict(extra)


def run_json(
    command: Sequence[str | Path], *, env: Mapping[str, str], timeout_s: float, request: Any = None
) -> Finished:
    """Return the Finished process of `command`, run in the repository root with `request` as JSON on standard input.

    Raises RuntimeError with the end of its standard error when it fails, or is still running after `timeout_s`.
    """
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        stdin.write(json.dumps(request).encode())
        stdin.seek(0)
        started = time.perf_counter()
        process = subprocess.Popen(
            [*map(str, command)], cwd=ROOT, env=clean_environment(env), stdin=stdin, stdout=stdout, stderr=stderr
        )
        timer = threading.Timer(timeout_s, process.kill)
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)  # unlike `wait`, tells the peak memory of this child alone
        except KeyboardInterrupt:
            process.kill()
            raise
        finally:
            timer.cancel()
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        for stream in (stdout, stderr):
            stream.seek(0)
        lines, told = stdout.read().decode().splitlines(), stderr.read().decode().strip()
    if process.returncode or not lines:
        why = f"after {timeout_s:.0f} s" if process.returncode == -9 else f"with exit code {process.returncode}"
        raise RuntimeError(f"{' '.join(map(str, command))}: ended {why}:\n{told[-3000:]}")
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return Finished(json.loads(lines[-1]), seconds, cpu_seconds, usage.ru_maxrss * unit / 1e6)


def summary(figure: Figure) -> dict[str, Any]:
    """Return median, extremes, n and whether the median keeps the promise (None where nothing is promised)."""
    median = statistics.median(figure.values)
    kept = {"<=": median <= figure.bound, ">=": median >= figure.bound, "": None}[figure.sense]
    return {
        "name": figure.name,
        "unit": figure.unit,
        "median": median,
        "minimum": min(figure.values),
        "maximum": max(figure.values),
        "n": len(figure.values),
        "values": list(figure.values),
        "goal": f"{figure.sense} {figure.bound:g}" if figure.sense else "",
        "reached": kept,
    }


def save_results(name: str, figures: Sequence[Figure], **details: Any) -> Path:
    """Write `benchmarks/results/NAME.json`, print the figures, and return the file's path."""
    summaries = [summary(figure) for figure in figures]
    document = {"benchmark": name, "figures": summaries, "details": details, "environment": environment()}
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for line in table(summaries):
        print(line)
    print(f"wrote {path.relative_to(ROOT)}")
    if LOAD_BEFORE > BUSY:
        print(f"note: the load average was {LOAD_BEFORE} before this began; run it again on a quiet machine")
    return path


def table(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each figure: name, median, smallest and largest value, n, and the goal."""
    lines = []
    for found in summaries:
        spread = f"({number(found['minimum'])} .. {number(found['maximum'])}, n={found['n']})"
        verdict = {True: "reached", False: "MISSED", None: ""}[found["reached"]]
        value = f"{number(found['median'])} {found['unit']}".rstrip()
        lines.append(f"  {found['name']:<52} {value:>18} {spread:<28} {found['goal']} {verdict}".rstrip())
    return lines


def number(value: float) -> str:
    """Return a number as people read it: thousands apart, three significant figures or four decimals below one.

    >>> number(123456.7), number(3.14159), number(0.91534)
    ('123,457', '3.14', '0.9153')
    """
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.4f}"


def environment() -> dict[str, Any]:
    """Return the hardware, the versions, the commit, and how busy the machine was before."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "commit": commit.stdout.strip(),
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "load_average_before": LOAD_BEFORE,
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def skip_if_absent(path: Path) -> None:
    """End the process, with a line that says so and exit code 0, when a data set is not there."""
    if not (ROOT / path).exists():
        print(f"skipped: expected the data set at {path} (relative to the repository root), found nothing there")
        sys.exit(0)
