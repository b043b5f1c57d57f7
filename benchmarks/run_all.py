"""Runs every benchmark, one after the other, and prints one table; this is `make bench`.

`python benchmarks/run_all.py [NAME ...]` runs those named only; `--report` runs nothing and prints the rows of
docs/BENCHMARKS.md from the newest results. A benchmark that takes too long is stopped, and that is said; a figure that
misses its goal is printed as such and fails nothing. Exit code 1 only when a benchmark itself broke.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness import RESULTS, number, table

HERE = Path(__file__).resolve().parent
LIMITS_S = {
    "startup": 300,
    "tabular_speed": 900,
    "convolution": 900,
    "cpu_images": 2400,
    "augmentation": 900,
    "adult": 600,
    "fashion_mnist": 1800,
    "serving": 900,
    "streaming": 600,
    "decoding": 600,
    "image_memory": 900,
    "large_table": 300,
    "scale": 900,
    "members": 900,
    "weak_spots": 900,
    "multimodal": 2400,
}
"""Benchmark -> the longest it may take. One that is no file here is left out."""


def run(name: str) -> str:
    """Run one benchmark and return how it ended: `done`, or why it has no new results."""
    print(f"== {name}", flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    started = time.time()
    command = [sys.executable, HERE / f"{name}.py"]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(LIMITS_S[name])
    except subprocess.TimeoutExpired:
        return f"stopped after {LIMITS_S[name]} s"
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)  # with the training processes it started
            process.wait()
    if code:
        return f"broke with exit code {code}"
    path = RESULTS / f"{name}.json"
    return "done" if path.exists() and path.stat().st_mtime >= started else "skipped"


def results(name: str) -> dict[str, Any] | None:
    """Return the newest results of a benchmark, or None when it has none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def report_rows(name: str) -> list[str]:
    """Return the Markdown rows of a benchmark: figure, goal, median, spread and n."""
    found = results(name) or {}
    return [
        f"| {figure['name'].strip()} | {figure['goal']} | {number(figure['median'])} {figure['unit']} | "
        f"{number(figure['minimum'])} .. {number(figure['maximum'])} | {figure['n']} |".replace("  ", " ")
        for figure in found.get("figures", [])
    ]


def main() -> None:
    """Run, and print the table of all results."""
    there = [name for name in LIMITS_S if (HERE / f"{name}.py").exists()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"benchmarks to run [{' '.join(there)}]")
    parser.add_argument("--report", action="store_true", help="only print Markdown rows of the newest results")
    arguments = parser.parse_args()
    names = arguments.names or there
    if unknown := sorted(set(names) - set(there)):
        parser.error(f"expected names among {', '.join(there)}, got {', '.join(unknown)}")
    if arguments.report:
        print("\n".join(row for name in names for row in report_rows(name)))
        return
    ended = {name: run(name) for name in names}
    print("\n== all")
    for name, how in ended.items():
        print(f"{name}: {how}")
        if how == "done":
            print("\n".join(table((results(name) or {}).get("figures", []))))
    sys.exit(any(how.startswith("broke") for how in ended.values()))


if __name__ == "__main__":
    main()
