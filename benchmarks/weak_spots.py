"""Where RealMLP is known to be weak: what does mmjax choose by the look of the data, and was that the better choice?

Question: on tables made up so that one weak spot decides, what is the test error with what mmjax chooses, without that
choice, and with gradient boosting (scikit-learn's HistGradientBoosting)? Tables, 4,000 rows but for the last:
- jumps: 3 numbers of 12 distinct values, the target a table of random values of them: few, discontinuous numerics;
- codes: a category of 400 values, each with an effect of its own, beside 4 numbers: high cardinality;
- tails: 6 numbers of Student's t with 1.5 degrees of freedom, the target a smooth function of their signed logarithms;
- tiny: 120 rows of 8 numbers, 2 of which count.
Choices: piecewise-linear codes of numbers (`numeric_bins`), embeddings for long categories (`categorical_encoding`),
robust scaling with a smooth clip (`scaler`), and no codes where rows are few. Seeds 0 to 2 of the table and the run.
Hardware: two cores (AMD EPYC, 2.6 GHz, AVX-512). Versions: Python 3.13, jax 0.12, scikit-learn 1.9. Errors do not
depend on how busy the machine is.
"""

import argparse
import csv
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from harness import Figure, save_results

Rows = tuple[list[str], np.ndarray]
"""Names, and cells f64 or text [N, F + 1] with the target last."""


class Spot(NamedTuple):
    """A weak spot."""

    make: Callable[[np.random.Generator], Rows]
    without: Mapping[str, Any]
    """Of `data.tabular.preprocessing`: what undoes the choice."""


def jumps(rng: np.random.Generator) -> Rows:
    """Few numbers of few values, each combination with a level of its own."""
    x = rng.integers(0, 12, (4000, 3))
    levels = rng.normal(size=(12, 12)), rng.normal(size=(12, 12))
    y = levels[0][x[:, 0], x[:, 1]] + levels[1][x[:, 1], x[:, 2]] + 0.1 * rng.normal(size=4000)
    return ["a", "b", "c", "y"], np.column_stack([x * 1.5, y])


def codes(rng: np.random.Generator) -> Rows:
    """A long category beside numbers."""
    x, which = rng.normal(size=(4000, 4)), rng.integers(0, 400, 4000)
    y = rng.normal(size=400)[which] + np.sin(2 * x[:, 0]) * x[:, 1] + 0.1 * rng.normal(size=4000)
    cells = np.column_stack([x.astype(str), np.char.add("k", which.astype(str)), y.astype(str)])
    return ["a", "b", "c", "d", "code", "y"], cells


def tails(rng: np.random.Generator) -> Rows:
    """Numbers whose largest are thousands of times the usual ones."""
    x = rng.standard_t(1.5, size=(4000, 6))
    z = np.sign(x) * np.log1p(np.abs(x))
    y = z[:, 0] * z[:, 1] + np.sin(2 * z[:, 2]) + z[:, 3] + 0.1 * rng.normal(size=4000)
    return [*"abcdef", "y"], np.column_stack([x, y])


def tiny(rng: np.random.Generator) -> Rows:
    """Hardly any rows."""
    x = rng.normal(size=(120, 8))
    return [*"abcdefgh", "y"], np.column_stack([x, x[:, 0] + np.abs(x[:, 1]) + 0.3 * rng.normal(size=120)])


SPOTS = {
    "jumps": Spot(jumps, {"numeric_bins": 0}),
    "codes": Spot(codes, {"categorical_encoding": "onehot"}),
    "tails": Spot(tails, {"scaler": "standard"}),
    "tiny": Spot(tiny, {"numeric_bins": 16}),
}


def errors(rows: Rows, preprocessing: Mapping[str, Any], seed: int, folder: Path) -> tuple[float, float]:
    """Return the test RMSE of mmjax and of gradient boosting on the same split."""
    from mmjax.config_load import config_from_dict
    from mmjax.train import fit

    names, cells = rows
    path = folder / "table.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *cells.tolist()])
    tabular = {"path": str(path), "target_column": "y", "task": "regression", "preprocessing": dict(preprocessing)}
    document = {"name": "spot", "seed": seed, "evaluation": {"baselines": "all"}, "data": {"tabular": tabular}}
    with tempfile.TemporaryDirectory() as run:
        fitted = fit(config_from_dict(document, "benchmark"), run_dir=Path(run) / "run", registry=None, resume="never")
    found = fitted.report["baselines"]["baselines"]
    boosted = [row["metrics"]["rmse"] for row in found if "boosting" in row["name"].lower()]
    return fitted.metrics["test"]["rmse"], min(boosted)


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 .. SEEDS - 1 [3]")
    figures = []
    seeds = range(parser.parse_args().seeds)
    for name, spot in SPOTS.items():
        chosen, without, boosted = [], [], []
        for seed in seeds:
            rows = spot.make(np.random.default_rng(seed))
            with tempfile.TemporaryDirectory() as made:
                error, boosting = errors(rows, {}, seed, Path(made))
                chosen.append(error)
                boosted.append(boosting)
                without.append(errors(rows, spot.without, seed, Path(made))[0])
            print(f"{name}, seed {seed}: {chosen[-1]:.4f}, without {without[-1]:.4f}, boosting {boosted[-1]:.4f}")
        undone = ", ".join(f"{key}: {value}" for key, value in spot.without.items())
        own = statistics.fmean(chosen)
        figures += [
            Figure(f"{name}: test RMSE", "", tuple(chosen)),
            Figure(f"  / with {undone}", "x", (own / statistics.fmean(without),)),
            Figure("  / gradient boosting", "x", (own / statistics.fmean(boosted),)),
        ]
    save_results("weak_spots", figures)


if __name__ == "__main__":
    main()
