"""Fashion-MNIST from an empty cache: >= 0.935 test accuracy in <= 10 minutes on two cores, by the recipe alone.

Question: how long does `python -m mmjax.train --config configs/fashion_mnist.yaml` take as a whole process, and how
good is the model? 60,000 images to train on, 7,500 of which tell how it goes and fit a temperature, 10,000 to test. The
recipe chooses network and epochs by the number of images, their size and the device; the last epoch counts, and nothing
looks at the test images before the end.
Hardware: two cores (AMD EPYC, 2.6 GHz, AVX-512). Versions: Python 3.13, jax 0.12. n = 1.

Minutes are of the whole process with an empty compile cache. Images/s is of the training steps alone, compiling apart.
"""

import argparse
import tempfile
from pathlib import Path

from harness import SHARED_DATA, Figure, Finished, python_module, run_json, save_results, skip_if_absent

DATA = SHARED_DATA / "images" / "fashion-mnist"


def train(folder: Path, data: Path) -> Finished:
    """Return the Finished training run, with its run and registry inside `folder`."""
    places = ("--run-dir", folder / "run", "--registry", folder / "registry")
    chosen = ("--config", "configs/fashion_mnist.yaml", "--set", f"data.image.path={data}")
    command = python_module("mmjax.train", *chosen, *places, "--json")
    return run_json(command, env={"MMJAX_CACHE_DIR": str(folder / "cache")}, timeout_s=1800)


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help=f"the folder of four idx.gz files [{DATA}]")
    parser.add_argument("--repeats", type=int, default=1, help="processes [1]")
    arguments = parser.parse_args()
    skip_if_absent(arguments.data)
    runs = []
    for repeat in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as made:
            runs.append(train(Path(made), arguments.data))
        print(f"run {repeat + 1} of {arguments.repeats}: {runs[-1].seconds:.0f} s", flush=True)
    documents = [run.document for run in runs]
    accuracy = tuple(document["metrics"]["test"]["accuracy"] for document in documents)
    figures = [
        Figure("fashion-mnist, test accuracy", "", accuracy, ">=", 0.935),
        Figure("fashion-mnist, whole process", "minutes", tuple(run.seconds / 60 for run in runs), "<=", 10.0),
        Figure("  training", "images/s", tuple(document["samples_per_second"] for document in documents)),
        Figure("  peak memory", "MB", tuple(run.peak_mb for run in runs)),
    ]
    save_results("fashion_mnist", figures, seconds_by_stage=[document["seconds"] for document in documents])


if __name__ == "__main__":
    main()
