"""`python -m mmjax.check`: what a config would do, without training: data, network, memory, time."""

from mmjax.huge_pages import start_with_huge_pages

if __name__ == "__main__":
    start_with_huge_pages()

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import jax
import numpy as np

from mmjax.analysis.present import describe_schema
from mmjax.backend import Backend, compiled, configure, precompiled
from mmjax.cli import echo, echo_table, json_option, run
from mmjax.config import Config, image_settings
from mmjax.config_load import expect_files, format_origins, load_config_with_origins, with_places
from mmjax.data.audit import refuse
from mmjax.data.audit_rows import counted
from mmjax.data.decode_sheet import contact_sheet
from mmjax.data.findings import audit_lines, finding_json
from mmjax.data.labels import said
from mmjax.data.pipeline import epoch_batches, take
from mmjax.data.prepare import Prepared, prepare
from mmjax.data.prepared import class_counts, rows_to_learn, split_sizes
from mmjax.data.split import PARTS
from mmjax.data.stream import gather, window_steps
from mmjax.drill import Drill, resume_drill
from mmjax.errors import ConfigError, TrainingError
from mmjax.models.pretrained import expect_weights
from mmjax.parts import build_parts
from mmjax.recipe import Decision, as_yaml, before_data, resolve_prepared
from mmjax.schema import Batch
from mmjax.training.setup import Setup, first_member, set_up
from mmjax.training.steps import empty_totals, make_train_chunk
from mmjax.transforms.build import build_augment

TIMED_STEPS = 50
PROMISES = {
    "cpu": "promised on CPU: the same bits for the same config, data, versions, kind of CPU and number of threads",
    "gpu": "on this device the bits are the same as far as XLA's programs are deterministic (XLA_FLAGS="
    "--xla_gpu_deterministic_ops=true makes them so); config, data, versions and device must be the same",
}
"""What resuming promises, by platform."""


class Checked(NamedTuple):
    """What training would look like."""

    config: Config
    decisions: tuple[Decision, ...]
    prepared: Prepared
    backend: Backend
    parameters: int
    flops_per_step: float
    """As XLA counts them in the program as written; NaN where it does not."""
    memory_bytes: int
    """Arguments, results and scratch of the compiled step."""
    compile_seconds: float
    step_seconds: float
    """As training runs it; median of three."""
    steps: int
    """Of all epochs."""
    estimated_seconds: float
    """All steps, compilation and an allowance for evaluation of a third of a step per scored batch."""


def check(config: Config, tell: Callable[[str], None] = lambda line: None) -> Checked:
    """Return the Checked config: everything of a run but the training. Raises what training would raise."""
    backend = configure(device=config.device, threads=config.threads, precision=config.precision)
    expect_weights(config.model)
    config, early = before_data(config)
    prepared = prepare(config, tell)
    config, decisions = resolve_prepared(config, prepared)
    setup = set_up(config, prepared, build_parts(config, prepared.schema), ahead=False)
    return _timed(config, (*early, *decisions), prepared, backend, setup)


def _timed(
    config: Config, decisions: tuple[Decision, ...], prepared: Prepared, backend: Backend, setup: Setup
) -> Checked:
    """Compile one step, ask XLA what it costs, and time it."""
    models, setup = setup.task.models, first_member(setup)
    epochs, batch_size = config.training.epochs, config.training.batch_size
    assert isinstance(epochs, int), "the recipe decides the epochs"
    assert isinstance(batch_size, int), "the recipe decides the batch size"
    rows, validation_rows = rows_to_learn(prepared.split)
    data, order = _on_device(setup, epoch_batches(config.seed, 1, rows, batch_size))
    step = make_train_chunk(setup.task.learner, seed=config.seed, loop=False)
    arguments = (setup.state, empty_totals(), data, *setup.fitted, order, 0, 1)
    program = precompiled(compiled(step, precision=setup.plan.precision), *arguments)
    seconds = _step_seconds(setup, arguments, steps=min(TIMED_STEPS, len(order)))
    steps = epochs * (rows // batch_size)
    scored = epochs * validation_rows / batch_size
    estimated = program.compile_seconds + seconds * (models * steps + scored / 3)
    return Checked(
        config=config,
        decisions=decisions,
        prepared=prepared,
        backend=backend,
        parameters=setup.task.parameters,  # of all members
        flops_per_step=program.flops,
        memory_bytes=program.memory_bytes,
        compile_seconds=program.compile_seconds,
        step_seconds=seconds,
        steps=steps,
        estimated_seconds=estimated,
    )


def _on_device(setup: Setup, order: np.ndarray) -> tuple[Batch, jax.Array]:
    """Return the rows that training has on the device at once, all or (streamed) a window, and their batches."""
    task = setup.task
    if task.streamed:
        order = order[: window_steps(task.data, order.shape[1])]
    rows = np.arange(order.size, dtype=np.int32).reshape(order.shape)
    return jax.device_put((gather(task.data, task.rows[order.reshape(-1)]), rows))


def _step_seconds(setup: Setup, arguments: tuple[Any, ...], *, steps: int) -> float:
    """Return the seconds of a step as training runs it: many in one program where the plan says so. Median of three."""
    steps_of = make_train_chunk(setup.task.learner, seed=setup.plan.seed, loop=setup.plan.loop)
    chunk = compiled(steps_of, precision=setup.plan.precision)
    count = steps if setup.plan.loop else 1
    times = []
    for _ in range(4):
        started = time.perf_counter()
        jax.block_until_ready(chunk(*arguments[:-1], count))
        times.append((time.perf_counter() - started) / count)
    return float(np.median(times[1:]))  # the first call compiles


def counts_by_class(prepared: Prepared) -> dict[str, dict[str, int]]:
    """Return rows by class and split; empty for regression."""
    counts = class_counts(prepared)
    return {name: {part: counts[part][name] for part in PARTS} for name in counts.get(PARTS[0], ())}


def write_batch(checked: Checked, path: Path) -> int:
    """Write a contact sheet of the first training batch as the network will see it; return the number of images.

    Augmented, before standardisation, captioned with its class or value; mixed images with both classes.
    """
    config, prepared = checked.config, checked.prepared
    settings = image_settings(config)
    assert settings is not None, "asked before"
    train = prepared.split.train
    first = epoch_batches(config.seed, 1, len(train), min(32, len(train)))[0]
    batch = take(prepared.batch, train[first])
    image = config.data.image
    augment = build_augment(settings.augmentation, size=image.train_size if image else None, seed=config.seed)
    if augment is not None:
        rows = train[first].astype(np.int32)
        given = batch | {"row": rows, "epoch": np.zeros_like(rows)}
        batch = compiled(augment)(jax.random.key(config.seed), given)
    pixels = np.asarray(batch["image"])
    images = np.clip(np.round(pixels.reshape(-1, *pixels.shape[2:])), 0, 255).astype(np.uint8)
    captions = _captions(batch, prepared.schema.target.classes)
    contact_sheet(path, images, [caption for caption in captions for _ in range(pixels.shape[1])])
    return len(images)


def _captions(batch: Batch, classes: tuple[str, ...]) -> list[str]:
    """Return the class, labels or value of each image, and of a mixed one the other answer with its part."""
    label = np.asarray(batch["label"])
    if not classes:
        return [f"{value:g}" for value in label[:, 0]]
    name = partial(said, names=classes) if label.ndim == 2 else classes.__getitem__
    names = list(map(name, label))
    if "mixed_label" not in batch:
        return names
    others = zip(names, map(name, np.asarray(batch["mixed_label"])), np.asarray(batch["mixed_share"]), strict=True)
    return [f"{one} + {share:.0%} {other}" if share else one for one, other, share in others]


def _expect_drawable(config: Config, path: Path) -> None:
    if image_settings(config) is None:
        raise ConfigError("--show-batch: expected a config with images, got a table; leave it out")
    if not path.parent.is_dir() or path.is_dir():
        raise ConfigError(f"--show-batch {path}: expected a file in a folder that is there; name another")


def tell(checked: Checked) -> None:
    """Print what was found."""
    prepared = checked.prepared
    echo(describe_schema(prepared.schema))
    echo(f"rows: {', '.join(f'{count} {name}' for name, count in split_sizes(prepared).items())}")
    for line in (*checked.backend.notes, *prepared.notes, *audit_lines(prepared.findings)):
        echo(line)
    refuse(prepared.findings)
    counts = counts_by_class(prepared)
    if counts:
        what = "rows with label" if prepared.schema.target.labels else "class"
        echo_table((what, *PARTS), [(name, *(str(row[s]) for s in PARTS)) for name, row in counts.items()])
    if checked.decisions:
        echo_table(("decided", "value", "why"), [(d.key, as_yaml(d.value), d.why) for d in checked.decisions])
    echo(f"parameters: {checked.parameters:,}")
    cost = f"{checked.flops_per_step / 1e6:,.1f} MFLOP, {checked.memory_bytes / 2**20:,.1f} MiB"
    took = f"{checked.step_seconds * 1e3:,.2f} ms on {checked.backend.platform}"
    echo(f"a step: {cost}, {took}; compiled in {checked.compile_seconds:.1f} s")
    echo(f"at most {checked.steps:,} steps: about {checked.estimated_seconds:,.0f} s")


def drilled(config: Config, *, kills: int) -> Drill:
    """Return the Drill of a config after telling what it saw; TrainingError when the bits differ."""
    drill = resume_drill(config, kills=kills, tell=echo)
    for line in drill.resumed:
        echo(line)
    if drill.differences:
        raise TrainingError(["drill: a run that was killed and gone on with ended elsewhere", *drill.differences])
    echo(
        f"drill: {counted(drill.kills, 'kill')}, {counted(len(drill.resumed), 'resume')}, "
        f"{counted(drill.runs, 'run')} compared: the same bits each time ({drill.digest[:12]}), {drill.seconds:.0f} s"
    )
    echo(PROMISES.get(drill.platform, PROMISES["gpu"]))
    return drill


@click.command(name="check", help="Check a config and its data without training.")
@click.option("--config", "config_path", required=True, type=click.Path(), metavar="FILE", help="The YAML config.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key.")
@click.option("--show-origin", is_flag=True, help="Say which file, flag or default set each value.")
@click.option("--show-batch", type=click.Path(path_type=Path), metavar="PNG", help="Write what the network will see.")
@click.option(
    "--resume-drill", "run_drill", is_flag=True, help="Train a few epochs, kill -9 at random, go on, compare all bits."
)
@click.option("--kills", default=3, show_default=True, type=click.IntRange(min=1), help="How often the drill kills.")
@json_option
def command(
    config_path: str,
    overrides: tuple[str, ...],
    show_origin: bool,
    show_batch: Path | None,
    run_drill: bool,
    kills: int,
) -> dict[str, Any]:
    """Check a config."""
    loaded = load_config_with_origins(config_path, overrides)
    if show_origin:
        echo(format_origins(loaded))
    if show_batch is not None:
        _expect_drawable(loaded.config, show_batch)
    with with_places(loaded.origins):
        expect_files(loaded.config)
        checked = check(loaded.config, echo)
    tell(checked)
    if show_batch is not None:
        count = write_batch(checked, show_batch)
        echo(f"{count} images in {show_batch}")
    drill = drilled(loaded.config, kills=kills) if run_drill else None
    return {
        "drill": None if drill is None else drill._asdict(),
        "parameters": checked.parameters,
        "rows": split_sizes(checked.prepared),
        "class_counts": counts_by_class(checked.prepared),
        "columns": {c.name: {"kind": c.kind, "reason": c.reason} for c in checked.prepared.schema.columns},
        "notes": checked.prepared.notes,
        "findings": [finding_json(finding) for finding in checked.prepared.findings],
        "decisions": [decision._asdict() for decision in checked.decisions],
        "flops_per_step": checked.flops_per_step,
        "memory_bytes": checked.memory_bytes,
        "compile_seconds": checked.compile_seconds,
        "step_seconds": checked.step_seconds,
        "estimated_seconds": checked.estimated_seconds,
        "origins": loaded.origins if show_origin else None,
    }


if __name__ == "__main__":
    run(command)
