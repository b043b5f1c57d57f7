"""`python -m mmjax.predict`: one output row for each input row, for inputs larger than memory."""

from mmjax.huge_pages import start_with_huge_pages

if __name__ == "__main__":
    start_with_huge_pages()

import csv
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import click
import msgspec
import numpy as np

from mmjax.artifact.models import locate_model
from mmjax.artifact.predictor import (
    Predictions,
    Predictor,
    abstaining_predictor,
    added_answers,
    load_predictor,
    set_texts,
    to_predictions,
)
from mmjax.backend import configure
from mmjax.cli import echo, json_option, run
from mmjax.config import TabularData
from mmjax.data.audit_rows import counted
from mmjax.data.encode import check_columns, unknown_categories
from mmjax.data.folders import IMAGE_SUFFIXES
from mmjax.data.idx import find_idx
from mmjax.data.image_paths import IMAGES_HELP, expect_folder, image_folder, refuse_images, with_paths
from mmjax.data.images import list_images, read_images, read_unlabelled_table, scan_images
from mmjax.data.table import Table, iter_table
from mmjax.data.validate import BrokenRules, add_broken, broken_notes, broken_rules, refuse_cells
from mmjax.errors import ConfigError, DataError
from mmjax.parts import member_count
from mmjax.schema import Columns, Label, Schema
from mmjax.training.scoring import Scores

CHUNK_ROWS = 8192
"""Rows of a table in memory at a time."""
CHUNK_IMAGES = 256
HEADINGS = {"sets": ["set"], "intervals": ["lower", "upper"], "abstained": ["abstained"]}
"""Of the columns of what only some models answer."""
SHOWN = 20
"""How many bad files are listed; the others are counted."""


class Chunk(NamedTuple):
    """Some successive input rows."""

    identifiers: np.ndarray
    """object[N]: what the first output column says of each row."""
    columns: Columns
    lines: np.ndarray
    """i64[N]: where each row starts in the file; images are counted from 1."""
    refuse: Callable[[], None]
    """Raises the DataError that names lines or files at fault, if any; called when the rows cannot be encoded."""


class Input(NamedTuple):
    """What is to be predicted."""

    heading: str
    """Of the identifiers."""
    chunks: Iterator[Chunk]
    ignored: tuple[str, ...]
    """Columns that the model does not use."""
    notes: tuple[str, ...]
    """Files that were skipped, and the like."""


class Written(NamedTuple):
    """What was predicted."""

    rows: int
    ignored: tuple[str, ...]
    """Columns of the input that the model does not use."""
    unknown: dict[str, int]
    """Cells with a category that training did not see, by column."""
    notes: tuple[str, ...]
    """Files that were skipped, and cells against the rules (bounds, pattern, enum) of the model's schema file."""


def predict_file(predictor: Predictor, source: Path, output: Path, *, images: Path | None = None) -> Written:
    """Return what was Written to the CSV `output`: identifier, `prediction`, `probability_<class>` for every class, and
    `uncertainty` of a model with members. Of several labels `prediction_<label>` for each, in the words of the data.

    Then, of a model that has them, `set` (a JSON list), `lower` and `upper`, `abstained` (true or false).
    `images` is the folder that paths of images in a table start from, if not the config's or the file's own. The file
    appears whole or not at all. Raises DataError for what the schema refuses, naming rows and columns.
    """
    given = open_input(predictor, source, images)
    if output.exists() and source.exists() and output.samefile(source):
        raise ConfigError(f"--output {output}: expected another file than the input; name one")
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    rows, unknown = 0, Counter[str]()
    broken: BrokenRules = {}
    classes, labels = predictor.schema.target.classes, predictor.schema.target.labels
    words = (*classes, *(text for label in labels for text in (label.negative, label.positive)))
    try:
        with partial.open("w", newline="", encoding="utf-8") as file:
            called = [f"prediction_{label.column}" for label in labels] or ["prediction"]
            heading = [given.heading, *called, *(f"probability_{name}" for name in classes)]
            heading += [name for field in added_answers(predictor) for name in HEADINGS[field]]
            heading += ["uncertainty"] if member_count(predictor.config) > 1 else []
            _writer(file, heading).writerow(heading)
            for chunk in given.chunks:
                _writer(file, (*map(str, chunk.identifiers), *words)).writerows(output_rows(chunk, predictor))
                rows += len(chunk.identifiers)
                for column, texts in unknown_categories(predictor.schema, chunk.columns).items():
                    unknown[column] += sum(texts.values())
                broken = add_broken(broken, broken_rules(chunk.columns, predictor.schema, chunk.lines))
        os.replace(partial, output)
    except OSError as error:
        raise DataError(f"{output}: cannot write predictions: {error.strerror or error}; name another file") from error
    finally:
        if partial.exists():
            partial.unlink()
    notes = (*given.notes, *broken_notes(broken, str(source), "predicted all the same"))
    return Written(rows, given.ignored, dict(unknown), notes)


def _writer(file: IO[str], texts: Iterable[str]) -> Any:
    """Return a CSV writer fit for these texts: before Python 3.13 a lone carriage return is left without quotes."""
    quoting = csv.QUOTE_ALL if any("\r" in text for text in texts) else csv.QUOTE_MINIMAL
    return csv.writer(file, lineterminator="\n", quoting=quoting)


def output_rows(chunk: Chunk, predictor: Predictor) -> Iterator[tuple[Any, ...]]:
    """Yield the output rows of a chunk. Numbers are written so that reading them gives the same f32 or f64."""
    found: Predictions = to_predictions(predictor.schema, _scores(chunk, predictor))
    columns: list[Iterable[Any]] = [chunk.identifiers]
    if labels := predictor.schema.target.labels:
        columns += label_columns(labels, found.prediction)
    else:
        columns.append(found.prediction.tolist())
    if found.probabilities is not None:
        columns += [map(str, column) for column in found.probabilities.T]
    if found.sets is not None:
        columns += [[json.dumps(texts, ensure_ascii=False) for texts in set_texts(found.classes, found.sets)]]
    if found.intervals is not None:
        columns += found.intervals.T.tolist()
    if found.abstained is not None:
        columns += [["true" if abstained else "false" for abstained in found.abstained.tolist()]]
    if found.uncertainty is not None:
        columns.append(map(str, found.uncertainty))
    yield from zip(*columns, strict=True)


def label_columns(labels: Sequence[Label], held: np.ndarray) -> list[list[str]]:
    """Return the cells of a column for each label: its texts of yes and no, for `held` bool[N, L]."""
    return [
        [label.positive if yes else label.negative for yes in column.tolist()]
        for label, column in zip(labels, held.T, strict=True)
    ]


def _scores(chunk: Chunk, predictor: Predictor) -> Scores:
    try:
        return predictor.score(chunk.columns)
    except DataError:
        chunk.refuse()
        raise


def open_input(predictor: Predictor, source: Path, images: Path | None = None) -> Input:
    """Return the rows of a CSV or the images of a folder or CSV, in chunks. Raises DataError for absent columns."""
    config, schema = predictor.config.data, predictor.schema
    if images is not None:
        expect_folder(predictor.config, images)
    if config.tabular is not None:
        return _open_table(schema, source, config.tabular, images)
    assert config.image is not None, "the config names one modality"
    column = schema.image.columns[0] if schema.image else config.image.image_column
    if source.is_dir() and find_idx(str(source)):
        found = read_images(msgspec.structs.replace(config.image, path=str(source)))
        return Input("path", _image_chunks(source, found.names, found.columns[column], column), (), found.notes)
    if source.is_dir() or not source.exists():
        paths, notes = list_images(source)
        files = np.array([str(source / path) for path in paths], dtype=object)
        return Input("path", _image_chunks(source, paths, files, column), (), notes)
    if source.suffix.lower() in IMAGE_SUFFIXES:
        raise DataError(
            f"{source}: expected a folder of images, or a CSV of their paths, got an image; give its folder"
        )
    listed = read_unlabelled_table(str(source), image_column=column)
    named = schema.id_column if schema.id_column in listed.columns else None
    names = listed.columns[named] if named else listed.names
    ignored = tuple(name for name in listed.columns if name != column)
    chunks = _image_chunks(source, names, listed.columns[column], column)
    return Input(named or "path", chunks, ignored, listed.notes)


def _open_table(schema: Schema, source: Path, data: TabularData, images: Path | None) -> Input:
    chunk_rows = CHUNK_ROWS if data.images is None else CHUNK_IMAGES
    tables = iter_table(str(source), delimiter=data.delimiter, chunk_rows=chunk_rows)
    first = next(tables, None)
    if first is None:
        raise DataError(f"{source}: expected at least one row, got a header only")
    ignored = check_columns(schema, tuple(first.columns), where=str(source))
    named = schema.id_column if schema.id_column in first.columns else None
    tables = itertools.chain((first,), tables)
    if data.images is not None:
        tables = map(partial(with_paths, schema, folder=image_folder(data.images, source, images)), tables)
    chunks = _table_chunks(schema, tables, named)
    return Input(named or "row", chunks, ignored, ())


def _table_chunks(schema: Schema, tables: Iterable[Table], named: str | None) -> Iterator[Chunk]:
    number = 1
    for table in tables:
        rows = len(table.lines)
        identifiers = table.columns[named] if named else np.arange(number, number + rows).astype(object)
        yield Chunk(identifiers, table.columns, table.lines, partial(_refuse_rows, schema, table))
        number += rows


def _refuse_rows(schema: Schema, table: Table) -> None:
    refuse_cells(schema, table)
    refuse_images(schema, table)


def _image_chunks(source: Path, names: np.ndarray, images: np.ndarray, column: str) -> Iterator[Chunk]:
    refuse = partial(_refuse_images, source, names, images)
    for start in range(0, len(names), CHUNK_IMAGES):
        rows = slice(start, start + CHUNK_IMAGES)
        numbers = np.arange(start, start + len(names[rows])) + 1
        yield Chunk(names[rows], {column: images[rows]}, numbers, refuse)


def _refuse_images(source: Path, names: np.ndarray, images: np.ndarray) -> None:
    bad = scan_images(images.tolist())
    if not bad:
        return
    lines = [f"{names[index]}: {reason}" for index, reason in bad[:SHOWN]]
    more = [f"and {len(bad) - SHOWN:,} more"] if len(bad) > SHOWN else []
    count = f"{source}: {len(bad):,} of {len(names):,} images cannot be read; mend or remove them"
    raise DataError([count, *lines, *more])


@click.command(name="predict", help="Write a model's predictions for a CSV or a folder of images.")
@click.option(
    "--model", required=True, metavar="NAME[:VERSION|@ALIAS]", help="A registered model, or a bundle's folder."
)
@click.option("--input", "source", required=True, type=click.Path(), metavar="CSV|FOLDER", help="What to predict.")
@click.option(
    "--output", required=True, type=click.Path(), metavar="CSV", help="Where predictions go, replaced if there."
)
@click.option("--images", type=click.Path(), metavar="FOLDER", help=IMAGES_HELP)
@click.option(
    "--registry", default="registry", show_default=True, type=click.Path(), help="Where models are registered."
)
@click.option(
    "--abstain-below",
    type=float,
    metavar="P",
    help="Add a column `abstained`: whether the largest probability is below P  [default: as trained]",
)
@json_option
def command(
    model: str, source: str, output: str, images: str | None, registry: str, abstain_below: float | None
) -> dict[str, Any]:
    """Write predictions."""
    for note in configure().notes:
        echo(note)
    started = time.perf_counter()
    located = locate_model(model, registry=registry)
    predictor = load_predictor(located.path)
    predictor = abstaining_predictor(predictor, abstain_below, where="--abstain-below")
    loaded = time.perf_counter()
    written = predict_file(predictor, Path(source), Path(output), images=None if images is None else Path(images))
    ended = time.perf_counter()
    for note in written.notes:
        echo(note)
    if written.ignored:
        echo(f"{source}: not used by the model: {', '.join(written.ignored)}")
    for column, count in written.unknown.items():
        if predictor.schema.column(column).fixed_vocabulary:
            continue  # a note tells what the enum expects
        echo(f"{source}: column '{column}': {counted(count, 'cell')} of a category unknown to the model")
    echo(f"{written.rows:,} predictions in {output}")
    return {
        "model": predictor.config.name,
        "version": located.version,
        "bundle": str(located.path),
        "output": output,
        **written._asdict(),
        "seconds": {"load": round(loaded - started, 3), "predict": round(ended - loaded, 3)},
        "samples_per_second": written.rows / (ended - loaded),
    }


if __name__ == "__main__":
    run(command)
