"""mmjax trains a tabular network at >= 1.5x the samples/s of a PyTorch eager loop with the same net.

Question: how many rows a second go through whole training steps? Table: 34,189 rows of adult's shape (6 numbers, 8
categories of 2 to 42 values, 2 classes), made up by a seed, prepared by mmjax's default recipe. Net: embeddings, hidden
layers with SiLU and dropout 0.1; [256, 256] is mmjax's default and the promise, the other sizes show how the ratio
moves. Batch 256, AdamW, float32.
Hardware: two cores (AMD EPYC, 2.6 GHz, AVX-512), two threads each side. Versions: Python 3.13 with jax 0.12; the peer:
Python 3.11 with torch 2.13.0, CPU build, the best of its three AdamW loops (plain, foreach, fused) for each net.
n = 5 processes a side, the sides taking turns, which goes first alternating; the ratio is that of the medians.

mmjax is timed through the functions that `mmjax.fit` calls, from the end of the first epoch to the end of the last:
shuffling, imputing, scaling and the loop's own bookkeeping are inside. Compiling and warming up are the first epoch,
told apart. What favours the peer is listed in torch_mlp_peer.py. Both sides must have equally many parameters, and
their losses are kept, so that anybody can see that they do the same work.
"""

import argparse
import csv
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from harness import Figure, run_json, save_results
from make_peers import NoPeer, peer_python

HERE = Path(__file__).resolve().parent
ROWS = 34_189
CATEGORIES = (9, 16, 7, 15, 6, 5, 2, 42)
"""Number of values of each categorical column of adult."""
NUMBERS = 6
OPTIMIZERS = ("plain", "foreach", "fused")
DEFAULT_NET = (256, 256)
CASES = (
    {"hidden_layers": (64, 64), "dropout": 0.1, "epochs": 13},
    {"hidden_layers": DEFAULT_NET, "dropout": 0.1, "epochs": 7},
    {"hidden_layers": (512, 512), "dropout": 0.1, "epochs": 3},
)
LEARNING = {"threads": 2, "batch_size": 256, "learning_rate": 2e-3, "weight_decay": 0.02}


def write_table(path: Path) -> None:
    """Write the made-up table: skewed categories, a tenth of one column missing, a label that both kinds explain."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(ROWS, NUMBERS)).round(3)
    codes = np.stack([rng.geometric(3.0 / (n + 2), ROWS) % n for n in CATEGORIES], axis=1)
    effects = [rng.normal(size=n) for n in CATEGORIES]
    score = numbers @ rng.normal(size=NUMBERS) + sum(effect[codes[:, i]] for i, effect in enumerate(effects))
    label = np.where(score + rng.logistic(size=ROWS) > np.quantile(score, 0.75), "high", "low")
    cells = numbers.astype(str).astype(object)
    cells[rng.random(ROWS) < 0.1, 0] = "?"
    texts = np.char.add("value", codes.astype(str)).astype(object)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = [f"number{i}" for i in range(NUMBERS)] + [f"category{i}" for i in range(len(CATEGORIES))]
        writer.writerow([*names, "label"])
        writer.writerows(np.concatenate([cells, texts, label[:, None].astype(object)], axis=1).tolist())


def measure(python: Path, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Return the runs of both sides, one for each process, net and (PyTorch) optimizer."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_table(folder / "table.csv")
        own = {"table": str(folder / "table.csv"), "target": "label", "export": str(folder / "arrays.npz")}
        peer = {"arrays": own["export"], "optimizers": OPTIMIZERS}
        commands = {
            "mmjax": ([sys.executable, HERE / "mmjax_mlp.py"], own),
            "torch": ([python, HERE / "torch_mlp_peer.py"], peer),
        }

        def ask(side: str, cases: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
            command, request = commands[side]
            request = {**request, **LEARNING, "cases": cases}
            env = {"MMJAX_CACHE_DIR": str(folder / "cache")}
            return run_json(command, env=env, timeout_s=300, request=request).document["runs"]

        short = tuple({**case, "epochs": 2} for case in CASES)
        uncounted = {side: ask(side, short) for side in commands}  # fills the caches, writes the peer's arrays
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in commands}
        for repeat in range(repeats):
            for side in sorted(commands, reverse=bool(repeat % 2)):
                runs[side] += ask(side, CASES)
            print(f"repeat {repeat + 1} of {repeats} done", flush=True)
    return {**runs, "uncounted": uncounted["mmjax"] + uncounted["torch"]}


def rates(runs: list[dict[str, Any]], net: tuple[int, ...], optimizer: str | None) -> tuple[float, ...]:
    """Return samples/s of each process for one net (and optimizer)."""
    return tuple(
        run["samples_per_second"]
        for run in runs
        if tuple(run["hidden_layers"]) == net and run.get("optimizer") == optimizer
    )


def figures_of(found: dict[str, list[dict[str, Any]]], net: tuple[int, ...]) -> list[Figure]:
    """Return the ratio of medians for one net, with both sides' rates and what mmjax spends before it is warm."""
    own = rates(found["mmjax"], net, None)
    by_optimizer = {kind: rates(found["torch"], net, kind) for kind in OPTIMIZERS}
    best = max(by_optimizer, key=lambda kind: statistics.median(by_optimizer[kind]))
    ratio = statistics.median(own) / statistics.median(by_optimizer[best])
    shape = "x".join(map(str, net))
    bound = (">=", 1.5) if net == DEFAULT_NET else ("", float("nan"))
    cold = tuple(
        run["first_epoch_seconds"]
        for run in found["uncounted"]
        if tuple(run["hidden_layers"]) == net and "optimizer" not in run
    )
    return [
        Figure(f"tabular {shape}, mmjax / PyTorch eager", "x", (ratio,), *bound),
        Figure(f"  {shape}: mmjax", "samples/s", own),
        *(
            Figure(f"  {shape}: PyTorch, {kind} AdamW" + (" (its best)" if kind == best else ""), "samples/s", found_)
            for kind, found_ in by_optimizer.items()
        ),
        Figure(f"  {shape}: mmjax, first epoch with compiling", "s", cold),
    ]


def same_work(found: dict[str, list[dict[str, Any]]], net: tuple[int, ...]) -> dict[str, Any]:
    """Return parameters and last losses of both sides. Raises RuntimeError when the nets differ in size."""
    of_net = {side: [run for run in found[side] if tuple(run["hidden_layers"]) == net] for side in ("mmjax", "torch")}
    parameters = {side: {run["parameters"] for run in runs} for side, runs in of_net.items()}
    if parameters["mmjax"] != parameters["torch"]:
        raise RuntimeError(f"the nets differ: {parameters}")
    losses = {side: statistics.median(run["losses"][-1] for run in runs) for side, runs in of_net.items()}
    return {"net": net, "parameters": parameters["mmjax"].pop(), "last_training_loss": losses}


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="processes a side [5]")
    repeats = parser.parse_args().repeats
    try:
        python = peer_python()
    except NoPeer as error:
        print(f"skipped: the peer's environment cannot be made: {error}")
        sys.exit(0)
    found = measure(python, repeats)
    nets = [tuple(case["hidden_layers"]) for case in CASES]
    figures = [figure for net in nets for figure in figures_of(found, net)]
    save_results("tabular_speed", figures, same_work=[same_work(found, net) for net in nets])


if __name__ == "__main__":
    main()
