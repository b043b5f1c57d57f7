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
from typing import IO, Any, Literal, NamedTuple

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
from mmjax.data.asked_images import AskedImages, image_problems, refuse_asked
from mmjax.data.audit_rows import counted
from mmjax.data.encode import check_columns, known_columns
from mmjax.data.folders import IMAGE_SUFFIXES
from mmjax.data.idx import find_idx
from mmjax.data.image_paths import (
    IMAGES_HELP,
    count_gaps,
    expect_folder,
    gap_notes,
    image_folder,
    located_images,
    refuse_rows,
    row_problems,
)
from mmjax.data.images import list_images, read_images, read_unlabelled_table
from mmjax.data.table import Table, iter_table, refuse_delimiter
from mmjax.data.unknown import Unknown, counts_by_column
from mmjax.data.validate import BrokenRules, add_broken, broken_notes, broken_rules
from mmjax.errors import ConfigError, DataError
from mmjax.parts import member_count
from mmjax.schema import Columns, Label, Schema
from mmjax.training.scoring import Scores

CHUNK_ROWS = 8192
"""Rows of a table in memory at a time."""
CHUNK_IMAGES = 256
OnInvalid = Literal["fail", "report"]
"""What rows that cannot be read do: stop all, or be written without a prediction. The words are the config's."""
GO_ON = "or predict the others: --on-invalid report"
PROBLEM = "problem"
"""Of the column that says why a row has no prediction, under `report`."""


class Chunk(NamedTuple):
    """Some successive input rows."""

    identifiers: np.ndarray
    """object[N]: what the first output column says of each row."""
    columns: Columns
    lines: np.ndarray
    """i64[N]: where each row starts in the file; images are counted from 1."""
    refuse: Callable[[], None]
    """Raises the DataError that names lines or files at fault, if any; called when the rows cannot be encoded."""
    problems: Callable[[], dict[int, str]]
    """Row -> what is wrong with it; called when the rows cannot be encoded."""
    encodable: bool = True
    """False where it is known already that some row is at fault."""


class Input(NamedTuple):
    """What is to be predicted."""

    heading: str
    """Of the identifiers."""
    chunks: Iterator[Chunk]
    ignored: tuple[str, ...]
    """Columns that the model does not use."""
    notes: tuple[str, ...]
    """Files that were skipped, and the like."""
    columns: tuple[str, ...] = ()
    """The names of a table's."""


class Written(NamedTuple):
    """What was predicted."""

    rows: int
    ignored: tuple[str, ...]
    """Columns of the input that the model does not use."""
    unknown: dict[str, int]
    """Cells with a category that training did not see, by column."""
    notes: tuple[str, ...]
    """Files that were skipped, missing cells, cells against the rules (bounds, pattern, enum) of the schema file."""
    invalid: int = 0
    """How many of the rows could not be read and have no prediction."""


def predict_file(
    predictor: Predictor, source: Path, output: Path, *, images: Path | None = None, on_invalid: OnInvalid = "fail"
) -> Written:
    """Return what was Written to the CSV `output`: identifier, `prediction`, `probability_<class>` for every class, and
    `uncertainty` of a model with members. Of several labels `prediction_<label>` for each, in the words of the data.

    Then, of a model that has them, `set` (a JSON list), `lower` and `upper`, `abstained` (true or false), and for every
    quantile a column such as `q0.25`. `images` is the folder that paths of images in a table start from, if not the
    config's or the file's own. The file appears whole or not at all. Raises DataError for what the schema refuses,
    naming rows and columns; where `on_invalid` is `report` such rows are written too, empty but for the last column,
    `problem`, which says why.
    """
    given = open_input(predictor, source, images)
    if output.exists() and source.exists() and output.samefile(source):
        raise ConfigError(f"--output {output}: expected another file than the input; name one")
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    rows, invalid, unknown, gaps = 0, 0, Counter[str](), Counter[str]()
    has_gaps = predictor.config.data.tabular is not None
    broken: BrokenRules = {}
    classes, labels = predictor.schema.target.classes, predictor.schema.target.labels
    words = (*classes, *(text for label in labels for text in (label.negative, label.positive)))
    try:
        with partial.open("w", newline="", encoding="utf-8") as file:
            called = [f"prediction_{label.column}" for label in labels] or ["prediction"]
            heading = [given.heading, *called, *(f"probability_{name}" for name in classes)]
            heading += added_headings(predictor)
            heading += ["uncertainty"] if member_count(predictor.config) > 1 else []
            heading += [PROBLEM] if on_invalid == "report" else []
            _writer(file, heading).writerow(heading)
            for asked in given.chunks:
                chunk, scores, cells, problems = answered(asked, predictor, on_invalid)
                found = iter(()) if scores is None else answer_rows(predictor, scores)
                if on_invalid == "report":
                    found = with_problems(found, problems, len(asked.identifiers), width=len(heading) - 2)
                lines = ((name, *cells) for name, cells in zip(asked.identifiers, found, strict=True))
                _writer(file, (*map(str, asked.identifiers), *words, *problems.values())).writerows(lines)
                rows, invalid = rows + len(asked.identifiers), invalid + len(problems)
                unknown += counts_by_column(cells)
                gaps += count_gaps(predictor.schema, chunk.columns) if has_gaps else Counter()
                broken = add_broken(broken, broken_rules(chunk.columns, predictor.schema, chunk.lines))
        os.replace(partial, output)
    except OSError as error:
        raise DataError(f"{output}: cannot write predictions: {error.strerror or error}; name another file") from error
    finally:
        if partial.exists():
            partial.unlink()
    missing = gap_notes(predictor.schema, given.columns, gaps, str(source)) if has_gaps else ()
    notes = (*given.notes, *missing, *broken_notes(broken, str(source), "predicted all the same"))
    return Written(rows, given.ignored, dict(unknown), notes, invalid)


class Answered(NamedTuple):
    """What became of a chunk."""

    chunk: Chunk
    """The rows that could be read."""
    scores: Scores | None
    """None where there is no such row."""
    unknown: tuple[Unknown, ...]
    problems: dict[int, str]
    """Row, of the chunk as it was asked, -> what is wrong with it."""


def answered(chunk: Chunk, predictor: Predictor, on_invalid: OnInvalid) -> Answered:
    """Return what a model says of the rows that can be read; DataError naming the others under `fail`."""
    if chunk.encodable:
        try:
            return Answered(chunk, *predictor.score_known(chunk.columns), {})
        except DataError:
            if on_invalid == "fail":
                _refuse(chunk)
                raise
    elif on_invalid == "fail":
        _refuse(chunk)
    problems = chunk.problems()
    keep = np.ones(len(chunk.identifiers), bool)
    keep[list(problems)] = False
    columns = {name: cells[keep] for name, cells in chunk.columns.items()}
    kept = chunk._replace(identifiers=chunk.identifiers[keep], columns=columns, lines=chunk.lines[keep])
    scores, unknown = predictor.score_known(columns) if keep.any() else (None, ())
    return Answered(kept, scores, unknown, problems)


def _refuse(chunk: Chunk) -> None:
    try:
        chunk.refuse()
    except DataError as error:
        raise DataError([*error.problems, GO_ON]) from error


def with_problems(
    answers: Iterator[tuple[Any, ...]], problems: dict[int, str], rows: int, *, width: int
) -> Iterator[tuple[Any, ...]]:
    """Yield the cells of all rows: answers and an empty problem, or `width` empty cells and the problem."""
    for row in range(rows):
        yield (*[""] * width, problems[row]) if row in problems else (*next(answers), "")


def _writer(file: IO[str], texts: Iterable[str]) -> Any:
    """Return a CSV writer fit for these texts: before Python 3.13 a lone carriage return is left without quotes."""
    quoting = csv.QUOTE_ALL if any("\r" in text for text in texts) else csv.QUOTE_MINIMAL
    return csv.writer(file, lineterminator="\n", quoting=quoting)


def added_headings(predictor: Predictor) -> list[str]:
    """Return the names of the columns of what only some models answer, in the order of `answer_rows`."""
    headings = {"sets": ["set"], "intervals": ["lower", "upper"], "abstained": ["abstained"]}
    headings["quantiles"] = [f"q{level}" for level in predictor.quantile_levels]
    return [name for field in added_answers(predictor) for name in headings[field]]


def answer_rows(predictor: Predictor, scores: Scores) -> Iterator[tuple[Any, ...]]:
    """Yield the cells of each row's answer. Numbers are written so that reading them gives the same f32 or f64."""
    found: Predictions = to_predictions(predictor, scores)
    classes, labels = predictor.schema.target.classes, predictor.schema.target.labels
    columns: list[Iterable[Any]] = []
    if labels:
        columns += label_columns(labels, found.prediction)
    elif classes:
        columns.append([classes[index] for index in scores.prediction.tolist()])
    else:
        columns.append(found.prediction.tolist())
    if found.probabilities is not None:
        columns += [map(str, column) for column in found.probabilities.T]
    if found.sets is not None:
        columns += [[json.dumps(texts, ensure_ascii=False) for texts in set_texts(classes, found.sets)]]
    if found.intervals is not None:
        columns += found.intervals.T.tolist()
    if found.abstained is not None:
        columns += [["true" if abstained else "false" for abstained in found.abstained.tolist()]]
    if found.quantiles is not None:
        columns += found.quantiles.T.tolist()
    if found.uncertainty is not None:
        columns.append(map(str, found.uncertainty))
    yield from zip(*columns, strict=True)


def label_columns(labels: Sequence[Label], held: np.ndarray) -> list[list[str]]:
    """Return the cells of a column for each label: its texts of yes and no, for `held` bool[N, L]."""
    return [
        [label.positive if yes else label.negative for yes in column.tolist()]
        for label, column in zip(labels, held.T, strict=True)
    ]


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
        return Input(
            "path", _image_chunks(AskedImages(source, found.names, found.columns[column]), column), (), found.notes
        )
    if source.is_dir() or not source.exists():
        paths, notes = list_images(source)
        files = np.array([str(source / path) for path in paths], dtype=object)
        return Input("path", _image_chunks(AskedImages(source, paths, files), column), (), notes)
    if source.suffix.lower() in IMAGE_SUFFIXES:
        raise DataError(
            f"{source}: expected a folder of images, or a CSV of their paths, got an image; give its folder"
        )
    listed = read_unlabelled_table(str(source), image_column=column)
    named = schema.id_column if schema.id_column in listed.columns else None
    names = listed.columns[named] if named else listed.names
    ignored = tuple(name for name in listed.columns if name not in (column, named))
    chunks = _image_chunks(AskedImages(source, listed.names, listed.columns[column], listed.lines, names), column)
    return Input(named or "path", chunks, ignored, listed.notes)


def _open_table(schema: Schema, source: Path, data: TabularData, images: Path | None) -> Input:
    chunk_rows = CHUNK_ROWS if data.images is None else CHUNK_IMAGES
    folder = image_folder(data.images, source, images) if data.images is not None else ""
    refuse_delimiter(source, data.delimiter, known_columns(schema))
    tables = iter_table(str(source), delimiter=data.delimiter, chunk_rows=chunk_rows)
    first = next(tables, None)
    if first is None:
        raise DataError(f"{source}: expected at least one row, got a header only")
    ignored = check_columns(schema, tuple(first.columns), where=str(source))
    named = schema.id_column if schema.id_column in first.columns else None
    chunks = _table_chunks(schema, itertools.chain((first,), tables), named, folder)
    ignored = tuple(name for name in ignored if name != named)
    return Input(named or "row", chunks, ignored, (), tuple(first.columns))


def _table_chunks(schema: Schema, tables: Iterable[Table], named: str | None, folder: str) -> Iterator[Chunk]:
    number = 1
    for read in tables:
        table, faults = located_images(schema, read, folder)
        rows = len(table.lines)
        identifiers = table.columns[named] if named else np.arange(number, number + rows).astype(object)
        refuse, problems = partial(refuse_rows, schema, table, faults), partial(row_problems, schema, table, faults)
        yield Chunk(identifiers, table.columns, table.lines, refuse, problems, encodable=not faults)
        number += rows


def _image_chunks(images: AskedImages, column: str) -> Iterator[Chunk]:
    identifiers = images.names if images.identifiers is None else images.identifiers
    for start in range(0, len(identifiers), CHUNK_IMAGES):
        rows = slice(start, start + CHUNK_IMAGES)
        numbers = np.arange(start, start + len(identifiers[rows])) + 1
        problems = partial(image_problems, images, rows)
        yield Chunk(identifiers[rows], {column: images.files[rows]}, numbers, partial(refuse_asked, images), problems)


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
@click.option(
    "--on-invalid",
    type=click.Choice(["fail", "report"]),
    default="fail",
    show_default=True,
    help="Where rows or files cannot be read: stop and list them, or predict the others; every row is written, these "
    "with a `problem` in the place of a prediction, and the exit code is 0, or 3 where no row at all can be read.",
)
@json_option
def command(
    model: str,
    source: str,
    output: str,
    images: str | None,
    registry: str,
    abstain_below: float | None,
    on_invalid: OnInvalid,
) -> dict[str, Any]:
    """Write predictions."""
    for note in configure().notes:
        echo(note)
    started = time.perf_counter()
    located = locate_model(model, registry=registry)
    predictor = load_predictor(located.path)
    predictor = abstaining_predictor(predictor, abstain_below, where="--abstain-below")
    loaded = time.perf_counter()
    folder = None if images is None else Path(images)
    written = predict_file(predictor, Path(source), Path(output), images=folder, on_invalid=on_invalid)
    ended = time.perf_counter()
    for note in written.notes:
        echo(note)
    if written.ignored:
        echo(f"{source}: not used by the model: {', '.join(written.ignored)}")
    for column, count in written.unknown.items():
        if predictor.schema.column(column).fixed_vocabulary:
            continue  # a note tells what the enum expects
        echo(f"{source}: column '{column}': {counted(count, 'cell')} of a category unknown to the model")
    document = {
        "model": predictor.config.name,
        "version": located.version,
        "bundle": str(located.path),
        "output": output,
        **written._asdict(),
        "seconds": {"load": round(loaded - started, 3), "predict": round(ended - loaded, 3)},
        "samples_per_second": written.rows / (ended - loaded),
    }
    if written.invalid == written.rows:
        told = f"{source}: expected at least one row that can be read, got none of {written.rows:,}"
        raise DataError(f"{told}; `{PROBLEM}` in {output} says why of each", document=document)
    if written.invalid:
        echo(f"{written.invalid:,} of {written.rows:,} rows cannot be read and have none; `{PROBLEM}` says why")
    echo(f"{written.rows - written.invalid:,} predictions in {output}")
    return document


if __name__ == "__main__":
    run(command)
