"""500,000 x 50 trains at >= 150,000 rows/s with the plain MLP of 256-256, and memory grows by a constant for each row.

Question: how many rows a second go through whole training steps, how long does the run take, and how much memory does
it need at its highest, for tables of 125,000 to 1,000,000 rows of 50 numbers and a label of two classes? "Plain" is
`model.name: mlp` with hidden layers of 256 and 256 on the scaled numbers (`numeric_bins: 0`); mmjax's own choice, which
adds piecewise-linear codes of the numbers (1,000 inputs in place of 50), is told beside it. The table is made up by a
seed, in a temporary folder; making it is not timed. Three epochs, batches as mmjax chooses them (1,024 rows).
Hardware: two cores (AMD EPYC, 2.6 GHz, AVX-512). Versions: Python 3.13, jax 0.12. n = 3 processes at 500,000 rows, one
at each other size. The constant is the slope of a least-squares line through the peaks of the resident runs; streamed
runs, which read training rows from the cache, must end with the same weights (compared by the test loss, to the bit).
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from harness import Figure, Finished, run_json, save_results

COLUMNS = 50
ROWS = (125_000, 250_000, 500_000, 1_000_000)
MAIN = 500_000
BLOCK = 50_000
GOAL = 150_000.0


def write_table(path: Path, rows: int) -> None:
    """Write `rows` rows of 50 numbers with three decimals, and a label that eight of them and a product explain."""
    rng = np.random.default_rng(0)
    weights, line = rng.normal(size=8), "%.3f," * COLUMNS + "%s\n"
    with path.open("w", encoding="utf-8") as file:
        file.write(",".join([*(f"number{i}" for i in range(COLUMNS)), "label"]) + "\n")
        for start in range(0, rows, BLOCK):
            numbers = rng.normal(size=(min(BLOCK, rows - start), COLUMNS))
            score = numbers[:, :8] @ weights + numbers[:, 8] * numbers[:, 9] + rng.logistic(size=len(numbers))
            labels = np.where(score > 0.0, "yes", "no")
            file.writelines(line % (*row, label) for row, label in zip(numbers.tolist(), labels, strict=True))


def fit_here(request: dict[str, Any]) -> dict[str, Any]:
    """Return what one run in this process took."""
    from mmjax.config_load import config_from_dict
    from mmjax.train import fit

    tabular = {"path": request["table"], "target_column": "label"}
    if request["plain"]:
        tabular["preprocessing"] = {"numeric_bins": 0}
    document = {
        "name": "scale",
        "model": {"name": "mlp", "architecture": {"hidden_layers": [256, 256]}},
        "training": {"epochs": 3},
        "evaluation": {"baselines": "none"},
        "data": {"loading": request["loading"], "tabular": tabular},
    }
    config = config_from_dict(document, "benchmark")
    fitted = fit(config, run_dir=request["run_dir"], registry=None, resume="never")
    return {
        "samples_per_second": fitted.report["training"]["samples_per_second"],
        "seconds": fitted.seconds,
        "test_loss": fitted.metrics["test"]["loss"],
    }


def measure(table: Path, *, plain: bool = True, loading: str = "resident") -> Finished:
    """Return one run as a process of its own, with an empty cache of rows."""
    with tempfile.TemporaryDirectory() as made:
        request = {"table": str(table), "plain": plain, "loading": loading, "run_dir": str(Path(made) / "run")}
        command = [sys.executable, __file__, "--fit-here"]
        env = {"MMJAX_CACHE_DIR": str(Path(made) / "cache")}
        return run_json(command, env=env, timeout_s=1800, request=request)


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="processes at 500,000 rows [3]")
    parser.add_argument("--fit-here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fit_here:
        print(json.dumps(fit_here(json.load(sys.stdin))))
        return
    found: dict[int, list[Finished]] = {}
    with tempfile.TemporaryDirectory() as made:
        for rows in ROWS:
            table = Path(made) / f"{rows}.csv"
            write_table(table, rows)
            found[rows] = [measure(table) for _ in range(arguments.repeats if rows == MAIN else 1)]
            print(f"{rows:,} rows: {found[rows][0].document}, {found[rows][0].peak_mb:.0f} MB", flush=True)
            if rows == MAIN:
                streamed, coded = measure(table, loading="streamed"), measure(table, plain=False)
            table.unlink()
    peaks = [statistics.median(run.peak_mb for run in found[rows]) for rows in ROWS]
    slope, start = np.polyfit(ROWS, peaks, 1)
    rates = tuple(run.document["samples_per_second"] for run in found[MAIN])
    whole = tuple(sum(run.document["seconds"].values()) for run in found[MAIN])
    same = {run.document["test_loss"] for run in (*found[MAIN], streamed)}
    save_results(
        "scale",
        [
            Figure("500,000 x 50, mlp 256-256 on scaled numbers, resident", "rows/s", rates, ">=", GOAL),
            Figure("  the whole run, 3 epochs", "s", whole),
            Figure("  streamed", "rows/s", (streamed.document["samples_per_second"],)),
            Figure("  streamed, peak memory", "MB", (streamed.peak_mb,)),
            Figure("  different test losses of resident and streamed runs", "", (float(len(same)),), "<=", 1),
            Figure("  with codes of the numbers (mmjax's choice)", "rows/s", (coded.document["samples_per_second"],)),
            *(Figure(f"  {n:,} rows, peak memory", "MB", (p,)) for n, p in zip(ROWS, peaks, strict=True)),
            Figure("  memory for each row more", "kB", (1000 * slope,)),
            Figure("  memory without rows", "MB", (start,)),
        ],
    )


if __name__ == "__main__":
    main()
