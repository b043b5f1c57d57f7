"""`python -m mmjax.evaluate`: every metric of a registered model on data with known answers."""

from mmjax.huge_pages import start_with_huge_pages

if __name__ == "__main__":
    start_with_huge_pages()

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import click
import msgspec
import numpy as np

from mmjax.analysis.answers import answer_lines
from mmjax.analysis.evaluation import Evaluation, evaluate_scores
from mmjax.analysis.present import print_results
from mmjax.analysis.report import Report, jsonable
from mmjax.analysis.trust import with_facts
from mmjax.artifact.bundle import load_bundle
from mmjax.artifact.models import load_model, locate_model
from mmjax.artifact.predictor import Predictor, proven_predictor
from mmjax.backend import configure
from mmjax.cli import echo, json_option, run
from mmjax.config import ImageData, TabularData
from mmjax.data.asked_images import AskedImages, refuse_asked
from mmjax.data.audit_rows import counted
from mmjax.data.encode import check_columns, known_columns
from mmjax.data.image_paths import (
    IMAGES_HELP,
    count_gaps,
    expect_folder,
    gap_notes,
    image_faults,
    image_folder,
    located_images,
    refuse_images,
    with_paths,
)
from mmjax.data.images import SHOWN, ImageSource, apply_policy, read_images, scan_images, take
from mmjax.data.prepare_images import answered_images
from mmjax.data.quarantine import answered_rows
from mmjax.data.table import Table, read_table, refuse_delimiter
from mmjax.data.validate import Fault, broken_notes, broken_rules, cell_faults, judge, refuse_cells
from mmjax.errors import ConfigError, DataError, did_you_mean
from mmjax.frames import is_frame
from mmjax.schema import Batch, Schema
from mmjax.training.scoring import Scores

OnInvalid = Literal["fail", "drop"]
"""What rows that cannot be read do: stop all, or be left out. The words are the config's."""
LEAVE_OUT = "--on-invalid drop leaves out what has no answer or cannot be read"
GIVEN = "this data"
"""What results on `--data` are called on the terminal: they are no test where the model has seen the rows."""


def evaluate_model(
    model: Predictor | str | Path,
    data: str | Path,
    *,
    registry: str = "registry",
    split: str = "",
    images: str | Path | None = None,
    on_invalid: OnInvalid = "fail",
    tell: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Return the Evaluation of a model on a CSV or image folder in the form it was trained on.

    `split` (`train`, `validation` or `test`) takes only that part of a folder that has such parts; `images` is the
    folder that paths of images in a table start from, if not the config's or the file's own; `tell` gets a line
    that counts missing cells, and one for each rule (bounds, pattern, enum) of the model's schema file that cells
    break. Raises DataError for rows that cannot be encoded or, where `on_invalid` is `drop`, leaves them out and tells
    how many; and for labels that are none of its classes.
    """
    if not isinstance(data, str | Path):
        todo = "; write it first: frame.to_csv('rows.csv', index=False)" if is_frame(data) else "; give its path"
        got = type(data).__name__
        raise DataError(f"data: expected the path of a CSV, or of a folder of images, got {got}{todo}")
    predictor = model if isinstance(model, Predictor) else load_model(model, registry=registry)
    config = predictor.config.data
    if images is not None:
        expect_folder(predictor.config, Path(images))
    if config.tabular is not None:
        if split:
            raise ConfigError("--split: expected only with a folder of images that has parts; a CSV has none")
        folder = None if config.tabular.images is None else image_folder(config.tabular.images, data, images)
        scores, batch = _score_table(predictor, config.tabular, data, folder, on_invalid, tell)
    else:
        assert config.image is not None, "the config names one modality"
        scores, batch = _score_images(predictor, config.image, Path(data), split, on_invalid, tell)
    return evaluate_scores(
        predictor.schema, scores, batch, state=predictor.states.output, levels=predictor.quantile_levels
    )


def _score_table(
    predictor: Predictor,
    trained_on: TabularData,
    data: str | Path,
    folder: str | None,
    on_invalid: OnInvalid,
    tell: Callable[[str], None],
) -> tuple[Scores, Batch]:
    """Return the Scores of the rows of a CSV with answers, and these; `folder` as in `readable_rows`."""
    schema = predictor.schema
    table = read_labelled_table(schema, Path(data), trained_on.delimiter)
    if on_invalid == "drop":
        table, dropped = readable_rows(schema, trained_on, table, folder)
        for note in dropped:
            tell(note)
    elif folder is not None:
        with advice():
            table = with_paths(schema, table, folder)
    try:
        scored = predictor.score_labelled(table.columns)
    except DataError:
        with advice():
            refuse_cells(schema, table, label=True)
            refuse_images(schema, table)
        raise
    gaps = count_gaps(schema, table.columns)
    broken = broken_rules(table.columns, schema, table.lines, label=True)
    for note in (
        *gap_notes(schema, table.columns, gaps, str(data)),
        *broken_notes(broken, str(data), "scored all the same"),
    ):
        tell(note)
    return scored


def _score_images(
    predictor: Predictor,
    trained_on: ImageData,
    data: Path,
    split: str,
    on_invalid: OnInvalid,
    tell: Callable[[str], None],
) -> tuple[Scores, Batch]:
    """Return the Scores of images with answers, and these; of one part where `split` names one."""
    source = read_labelled_images(trained_on, data, split)
    if on_invalid == "drop":
        source, dropped = readable_images(predictor.schema, trained_on, source, data)
        for note in dropped:
            tell(note)
    refuse_labels(predictor.schema, source, data)
    try:
        return predictor.score_labelled(source.columns)
    except DataError:
        with advice():
            refuse_asked(AskedImages(data, source.names, source.columns[source.image_column], source.lines))
        raise


def read_labelled_table(schema: Schema, path: Path, delimiter: str) -> Table:
    """Return the rows of a CSV with answers; DataError for absent and unknown columns."""
    refuse_delimiter(path, delimiter, known_columns(schema))
    table = read_table(str(path), delimiter=delimiter)
    check_columns(schema, tuple(table.columns), where=str(path))
    answers = (*schema.target.columns, schema.weight_column)
    absent = [name for name in answers if name is not None and name not in table.columns]
    if absent:
        raise DataError([f"{path}: expected the column '{name}', got {', '.join(table.columns)}" for name in absent])
    return table


def read_labelled_images(trained_on: ImageData, path: Path, split: str) -> ImageSource:
    """Return images with answers, read as those trained on; of one part where `split` names one."""
    # "drop": images that are not there are told, or left out, with those that cannot be read
    source = read_images(msgspec.structs.replace(trained_on, path=str(path), on_invalid="drop"), minimum_classes=1)
    if not split:
        return source
    if source.assigned is None:
        raise ConfigError(f"--split {split}: expected a folder with train, val and test in it, got {path} without")
    rows = np.asarray(source.assigned == split)
    if not rows.any():
        raise DataError(f"--split {split}: expected images in that part of {path}, got none")
    return take(source, rows)


def readable_rows(
    schema: Schema, trained_on: TabularData, table: Table, folder: str | None
) -> tuple[Table, tuple[str, ...]]:
    """Return the rows of a CSV that have an answer and can be read, and notes that count the others.

    `folder` is where paths of images start from, None where there are none; the rows returned have them in full.
    """
    dropping = msgspec.structs.replace(trained_on, on_invalid="drop", task=schema.target.task)
    table, unanswered, _ = answered_rows(table, dropping, None)
    table, faults = (table, []) if folder is None else located_images(schema, table, folder)
    table, lost = _without(schema, table, faults)
    table, unread = _without(schema, table, [*cell_faults(schema, table), *image_faults(schema, table)])
    return table, (*unanswered, *lost, *unread)


def _without(schema: Schema, table: Table, faults: list[Fault]) -> tuple[Table, tuple[str, ...]]:
    found = judge(faults, None, schema, table.lines, table.path, "drop")
    columns = {name: cells[found.keep] for name, cells in table.columns.items()}
    return Table(columns, table.lines[found.keep], table.path), found.notes


def readable_images(
    schema: Schema, trained_on: ImageData, source: ImageSource, path: Path
) -> tuple[ImageSource, tuple[str, ...]]:
    """Return the images that have an answer and can be read, and notes that count the others."""
    dropping = msgspec.structs.replace(trained_on, path=str(path), on_invalid="drop", task=schema.target.task)
    source, unanswered, _ = answered_images(source, dropping)
    bad = scan_images(source.columns[source.image_column].tolist())
    source, _, dropped = apply_policy(source, bad, "drop")
    return source, (*unanswered, *(f"{path}: {note}" for note in dropped))


@contextmanager
def advice() -> Iterator[None]:
    """Add to a DataError how to go on without the rows that it names."""
    try:
        yield
    except DataError as error:
        raise DataError([*error.problems, LEAVE_OUT]) from error


def refuse_labels(schema: Schema, source: ImageSource, path: Path) -> None:
    """Raise DataError with every label of images that is no class of the model: how many have it, and the first."""
    target = schema.target
    if target.task != "classification":
        return
    problems, labels = [], source.columns[target.column]
    for label, count in Counter(text for text in labels.tolist() if text not in target.classes).items():
        first = int(np.flatnonzero(labels == label)[0])
        where = f"on line {source.lines[first]}" if source.lines is not None else f"is {source.names[first]}"
        told = f"{path}: expected one of the model's classes ({', '.join(target.classes[:SHOWN])}), got {label!r} of "
        problems.append(f"{told}{counted(count, 'image')}, the first {where}{did_you_mean(label, target.classes)}")
    if problems:
        raise DataError([*problems, "rename these classes, or leave their images out"])


def evaluation_report(trained: Report, evaluation: Evaluation, *, new: bool = True) -> Report:
    """Return the report of a model with the results on this data in the place of its own.

    `new` is whether the model has not seen these rows, so that chance alone decides their coverage.
    """
    return trained | {
        "metrics": {GIVEN: evaluation.metrics},
        "intervals": {},
        "baselines": None,
        "leak": None,  # of the test rows
        "modalities": None,
        "members": trained["members"] | {"each": []} if trained.get("members") else None,
        "per_class": {GIVEN: evaluation.per_class},
        "confusion": {GIVEN: evaluation.confusion},
        "answers": {
            kind: own
            for kind, own in with_facts(
                trained.get("answers", {}), {GIVEN: jsonable(evaluation.trust)}, new=new
            ).items()
            if own["splits"]
        },
        "data": trained["data"]
        | {"split_sizes": {GIVEN: evaluation.rows}, "zero_targets": {GIVEN: evaluation.zero_targets}},
    }


def trained_on(predictor: Predictor, data: str | Path) -> bool:
    """Return whether `data` is the very path that the model was trained from."""
    source = predictor.config.data.tabular or predictor.config.data.image
    return source is not None and Path(source.path).resolve() == Path(data).resolve()


@click.command(name="evaluate", help="Score a registered model on data with known answers.")
@click.option(
    "--model", required=True, metavar="NAME[:VERSION|@ALIAS]", help="A registered model, or a bundle's folder."
)
@click.option("--data", required=True, type=click.Path(), help="CSV or image folder, with answers.")
@click.option(
    "--split", type=click.Choice(["train", "validation", "test"]), help="Only this part of a folder with parts."
)
@click.option("--images", type=click.Path(), metavar="FOLDER", help=IMAGES_HELP)
@click.option(
    "--registry", default="registry", show_default=True, type=click.Path(), help="Where models are registered."
)
@click.option(
    "--on-invalid",
    type=click.Choice(["fail", "drop"]),
    default="fail",
    show_default=True,
    help="Where rows or images cannot be read or have no answer: stop and list them, or leave them out and count them.",
)
@json_option
def command(
    model: str, data: str, split: str | None, images: str | None, registry: str, on_invalid: OnInvalid
) -> dict[str, Any]:
    """Score a registered model."""
    for note in configure().notes:
        echo(note)
    started = time.perf_counter()
    located = locate_model(model, registry=registry)
    bundle = load_bundle(located.path)
    predictor = proven_predictor(bundle, where=str(located.path))
    loaded = time.perf_counter()
    notes: list[str] = []
    evaluation = evaluate_model(
        predictor, data, split=split or "", images=images, on_invalid=on_invalid, tell=notes.append
    )
    ended = time.perf_counter()
    for note in notes:
        echo(note)
    same = trained_on(predictor, data) and split != "test"
    report = evaluation_report(
        bundle.contents.report, evaluation, new=not same and split not in ("train", "validation")
    )
    if same:
        echo(
            f"note: the model was trained from {data}; it has seen most of these rows. How it does on others: "
            f"`mmjax registry show {predictor.config.name}`"
        )
    print_results(report, sys.stdout)
    for line in answer_lines(report):
        echo(line)
    part = split or "test"
    return {
        "model": predictor.config.name,
        "version": located.version,
        "bundle": str(located.path),
        "data": data,
        "rows": evaluation.rows,
        "notes": notes,
        "metrics": {part: evaluation.metrics},
        "per_class": {part: evaluation.per_class},
        "confusion": {part: evaluation.confusion},
        "answers": {kind: {"splits": {part: own["splits"][GIVEN]}} for kind, own in report["answers"].items()},
        "seconds": {"load": round(loaded - started, 3), "evaluate": round(ended - loaded, 3)},
        "samples_per_second": evaluation.rows / (ended - loaded),
    }


if __name__ == "__main__":
    run(command)
