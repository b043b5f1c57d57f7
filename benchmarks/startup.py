"""From nothing to a trained, tested, registered iris model: <= 8 s with an empty compile cache, <= 5 s with a warm one.

Question: how long does `python -m mmjax.train --config configs/iris.yaml` take as a whole process, imports included?
Hardware: two cores (AMD EPYC, 2.6 GHz, AVX-512). Versions: Python 3.13, jax 0.12. n = 5 pairs.

Each pair starts with an empty folder for the compile cache; the second process of the pair finds what the first left.
One process before them is not counted: it brings files into the page cache and writes Python's bytecode. The clock is
the parent's, from before the start to after the end; compiling is inside on purpose, it is what a user waits for.
"""

import argparse
import tempfile
from pathlib import Path

from harness import Figure, Finished, python_module, run_json, save_results


def train(folder: Path, cache: Path) -> Finished:
    """Return the Finished training run, with its run and registry inside `folder`."""
    command = python_module(
        "mmjax.train", "--config", "configs/iris.yaml", "--run-dir", folder / "run", "--registry", folder / "registry"
    )
    return run_json([*command, "--json"], env={"MMJAX_CACHE_DIR": str(cache)}, timeout_s=120)


def measure(pairs: int) -> dict[str, list[Finished]]:
    """Return the Finished processes with an `empty` and with a `warm` cache."""
    found: dict[str, list[Finished]] = {"empty": [], "warm": []}
    with tempfile.TemporaryDirectory() as made:
        train(Path(made) / "uncounted", Path(made) / "uncounted-cache")
        for pair in range(pairs):
            for state, runs in found.items():
                runs.append(train(Path(made) / f"{pair}-{state}", Path(made) / f"{pair}-cache"))
                print(f"pair {pair + 1} of {pairs}, {state} cache: {runs[-1].seconds:.2f} s", flush=True)
    return found


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="processes of either kind [5]")
    found = measure(parser.parse_args().pairs)
    figures = []
    for state, bound in (("empty", 8.0), ("warm", 5.0)):
        runs = found[state]
        stages = {name: tuple(run.document["seconds"][name] for run in runs) for name in runs[0].document["seconds"]}
        total = stages.pop("total")
        rest = tuple(inside - sum(seconds) for inside, *seconds in zip(total, *stages.values(), strict=True))
        outside = tuple(run.seconds - inside for run, inside in zip(runs, total, strict=True))
        figures += [
            Figure(f"iris, whole process, {state} cache", "s", tuple(run.seconds for run in runs), "<=", bound),
            *(Figure(f"  {name}, {state} cache", "s", seconds) for name, seconds in stages.items()),
            Figure(f"  bundle, registry and printing, {state} cache", "s", rest),
            Figure(f"  interpreter and imports, {state} cache", "s", outside),
            Figure(f"  CPU time of all threads, {state} cache", "s", tuple(run.cpu_seconds for run in runs)),
            Figure(f"  peak memory, {state} cache", "MB", tuple(run.peak_mb for run in runs)),
        ]
    accuracy = tuple(run.document["metrics"]["test"]["accuracy"] for runs in found.values() for run in runs)
    save_results("startup", [*figures, Figure("iris, test accuracy", "", accuracy, ">=", 0.93)])


if __name__ == "__main__":
    main()
