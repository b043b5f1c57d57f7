"""The resume drill: train, kill -9 at random moments, go on, and compare with a run that nobody disturbed.

It runs the front door as a user would, in processes of its own, on the user's config and data, for a few epochs.
"""

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from mmjax.artifact.bundle import load_bundle
from mmjax.artifact.manifest import read_manifest
from mmjax.artifact.runs import load_run
from mmjax.artifact.tree import flatten
from mmjax.config import Config, fold_count, image_settings
from mmjax.config_load import config_to_yaml
from mmjax.errors import TrainingError

EPOCHS = 4
"""A drill trains so many at most: enough for early stopping, averages and checkpoints to matter."""


class Drill(NamedTuple):
    """What a drill saw."""

    kills: int
    resumed: tuple[str, ...]
    """Where the killed runs went on, a line each."""
    runs: int
    """Disturbed runs that were brought to their end and compared."""
    digest: str
    """Content digest of the undisturbed run's model."""
    differences: tuple[str, ...]
    """What came out otherwise; empty when every run gave the same bits."""
    platform: str
    seconds: float


def resume_drill(
    config: Config, *, kills: int = 3, seed: int | None = None, epochs: int = EPOCHS, tell: Callable[[str], None]
) -> Drill:
    """Return the Drill of the config, shortened to `epochs`; the moments of the kills follow from `seed`.

    A run is killed again and again until it is over; then another one, until there were `kills` kills. Raises
    TrainingError with what the front door said when a run fails by itself.
    """
    seed = random.SystemRandom().randrange(2**31) if seed is None else seed
    moments, began = random.Random(seed), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mmjax-drill-") as folder:
        home = Path(folder)
        short = _shortened(config, epochs)
        (home / "drill.yaml").write_text(config_to_yaml(short), encoding="utf-8")
        started = time.perf_counter()
        _train(home, "undisturbed")
        lasted = time.perf_counter() - started
        tell(f"drill: the undisturbed run took {lasted:.1f} s; killing {kills} times, seed {seed}")
        done, resumed, differences, runs = 0, [], [], 0
        while done < kills:
            runs += 1
            folder_name = f"disturbed-{runs}"
            delays = (moments.uniform(0, lasted) for _ in range(kills - done))
            killed, lines = _disturb(home, folder_name, delays)
            done, resumed = done + killed, [*resumed, *lines]
            differences += _differences(home / "undisturbed", home / folder_name, folder_name)
        manifest = read_manifest(home / "undisturbed" / "registry" / short.name / "1")
        platform = str(manifest.provenance.get("platform"))
    told = tuple(line.replace(f"{home}{os.sep}", "") for line in resumed)
    return Drill(done, told, runs, manifest.digest, tuple(differences), platform, time.perf_counter() - began)


def _disturb(home: Path, where: str, delays: Iterable[float]) -> tuple[int, list[str]]:
    """Bring one run to its end, killing it after each of the delays; return the kills, and where it went on."""
    kills, resumed = 0, []
    for delay in (*delays, None):
        told = _train(home, where, kill_after_s=delay)
        resumed += [line for line in told.lines if line.startswith("resume: going on")]
        if not told.killed:
            break
        kills += 1
    return kills, resumed


def _shortened(config: Config, epochs: int) -> Config:
    """Return the config with fewer epochs, and a checkpoint whenever there can be one.

    Nothing in it is left to the clock, which tells every run something else: no budget, and members in one way.
    """
    checkpoint = msgspec.structs.replace(
        config.training.checkpoint, enabled=True, path=None, every_epochs=msgspec.UNSET, every_seconds=0.001
    )
    wanted = config.training.epochs if isinstance(config.training.epochs, int) else epochs
    several = fold_count(config) or config.training.members > 1 or config.training.seeds
    usual = "map" if image_settings(config) is None else "loop"  # each right on any device, on a CPU also fast
    how = usual if several and config.training.member_loop is msgspec.UNSET else config.training.member_loop
    training = msgspec.structs.replace(
        config.training, epochs=min(wanted, epochs), checkpoint=checkpoint, member_loop=how
    )
    return msgspec.structs.replace(config, training=training, budget=None)


class _Told(NamedTuple):
    lines: list[str]
    killed: bool


def _train(home: Path, where: str, kill_after_s: float | None = None) -> _Told:
    """Run the front door in `home/where`, kill it after a while if asked; TrainingError when it fails by itself."""
    run, registry = home / where / "run", home / where / "registry"
    command = [sys.executable, "-m", "mmjax.train", "--config", str(home / "drill.yaml"), "--run-dir", str(run)]
    with _started([*command, "--registry", str(registry)]) as process:
        try:
            out, _ = process.communicate(timeout=kill_after_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
    if process.returncode not in (0, -9):
        raise TrainingError([f"drill: expected a run that ends well, got exit code {process.returncode}", out[-2000:]])
    return _Told(out.splitlines(), process.returncode == -9)


@contextlib.contextmanager
def _started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _differences(expected: Path, found: Path, what: str) -> list[str]:
    """Return what the models of two runs, and what the registries say, have otherwise; empty when all bits agree."""
    one, other = (sorted((folder / "registry").glob("*/[0-9]*")) for folder in (expected, found))
    if [path.name for path in other] != ["1"]:
        return [f"{what}: expected one registered version, got {', '.join(path.name for path in other) or 'none'}"]
    bundles = load_bundle(one[0]), load_bundle(other[0])
    problems = []
    if bundles[0].digest != bundles[1].digest:
        problems.append(f"{what}: content digest {bundles[1].digest[:12]}, expected {bundles[0].digest[:12]}")
    states = [flatten(bundle.contents.states, "states")[1] for bundle in bundles]
    changed = [name for name, array in states[0].items() if array.tobytes() != states[1][name].tobytes()]
    problems += [f"{what}: {len(changed)} arrays differ, {changed[0]} first"] if changed else []
    metrics = [load_run(folder / "run").record.metrics for folder in (expected, found)]
    problems += [f"{what}: other metrics"] if metrics[0] != metrics[1] else []
    return problems
