"""`python -m mmjax.predict`: one output row for each input row, for inputs larger than memory."""

import csv
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from mmjax.artifact.models import load_model
from mmjax.artifact.predictor import Predictions, Predictor, to_predictions
from mmjax.backend import configure
from mmjax.cli import echo, json_option, run
from mmjax.data.encode import check_columns, unknown_categories
from mmjax.data.images import read_unlabelled
from mmjax.data.table import iter_table
from mmjax.errors import DataError
from mmjax.schema import Columns

CHUNK_ROWS = 8192
"""Rows of a table in memory at a time."""
CHUNK_IMAGES = 256


class Chunk(NamedTuple):
    """Some successive input rows."""

    identifiers: np.ndarray
    """object[N]: what the first output column says of each row."""
    columns: Columns


class Written(NamedTuple):
    """What was predicted."""

    rows: int
    ignored: tuple[str, ...]
    """Columns of the input that the model does not use."""
    unknown: dict[str, int]
    """Cells with a category that training did not see, by column."""


def predict_file(predictor: Predictor, source: Path, output: Path) -> Written:
    """Return what was Written to the CSV `output`: identifier, `prediction`, `probability_<class>` for every class.

    The file appears whole or not at all. Raises DataError for what the schema refuses, naming rows and columns.
    """
    heading, chunks, ignored = open_input(predictor, source)
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    rows, unknown = 0, dict[str, int]()
    try:
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(
                [heading, "prediction", *(f"probability_{name}" for name in predictor.schema.target.classes)]
            )
            for chunk in chunks:
                writer.writerows(output_rows(chunk, predictor))
                rows += len(chunk.identifiers)
                for column, values in unknown_categories(predictor.schema, chunk.columns).items():
                    unknown[column] = unknown.get(column, 0) + sum(values.values())
        os.replace(partial, output)
    except OSError as error:
        raise DataError(f"{output}: cannot write predictions: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return Written(rows, ignored, {name: count for name, count in unknown.items() if count})


def output_rows(chunk: Chunk, predictor: Predictor) -> Iterator[tuple[Any, ...]]:
    """Yield the output rows of a chunk. Numbers are written so that reading them gives the same f32 or f64."""
    found: Predictions = to_predictions(predictor.schema, predictor.score(chunk.columns))
    predicted = found.prediction.tolist()
    if found.probabilities is None:
        yield from zip(chunk.identifiers, predicted, strict=True)
        return
    for identifier, prediction, probabilities in zip(chunk.identifiers, predicted, found.probabilities, strict=True):
        yield (identifier, prediction, *map(str, probabilities))


def open_input(predictor: Predictor, source: Path) -> tuple[str, Iterator[Chunk], tuple[str, ...]]:
    """Return the heading of the identifier column, the Chunks of the input, and the columns that are ignored."""
    config, schema = predictor.config.data, predictor.schema
    if config.tabular is None:
        paths = read_unlabelled(source)
        return "path", _image_chunks(source, paths, schema.image.columns[0] if schema.image else "image"), ()
    tables = iter_table(str(source), delimiter=config.tabular.delimiter, chunk_rows=CHUNK_ROWS)
    first = next(tables, None)
    if first is None:
        raise DataError(f"{source}: expected at least one row, got a header only")
    ignored = check_columns(schema, tuple(first.columns), where=str(source))
    named = schema.id_column if schema.id_column in first.columns else None

    def chunks() -> Iterator[Chunk]:
        number = 1
        for table in itertools.chain((first,), tables):
            yield _table_chunk(table.columns, named, number)
            number += len(table.lines)

    return named or "row", chunks(), ignored


def _table_chunk(columns: Columns, named: str | None, number: int) -> Chunk:
    rows = len(next(iter(columns.values())))
    identifiers = columns[named] if named else np.arange(number, number + rows).astype(object)
    return Chunk(identifiers, columns)


def _image_chunks(folder: Path, paths: np.ndarray, column: str) -> Iterator[Chunk]:
    for start in range(0, len(paths), CHUNK_IMAGES):
        names = paths[start : start + CHUNK_IMAGES]
        files = np.array([str(folder / name) for name in names], dtype=object)
        yield Chunk(names, {column: files})


@click.command(name="predict", help="Write a model's predictions for a CSV or a folder of images.")
@click.option(
    "--model", required=True, metavar="NAME[:VERSION|@ALIAS]", help="A registered model, or a bundle's folder."
)
@click.option("--input", "source", required=True, type=click.Path(), metavar="CSV|FOLDER", help="What to predict.")
@click.option(
    "--output", required=True, type=click.Path(), metavar="CSV", help="Where predictions go, replaced if there."
)
@click.option(
    "--registry", default="registry", show_default=True, type=click.Path(), help="Where models are registered."
)
@json_option
def command(model: str, source: str, output: str, registry: str) -> dict[str, Any]:
    """Write predictions."""
    for note in configure().notes:
        echo(note)
    predictor = load_model(model, registry=registry)
    written = predict_file(predictor, Path(source), Path(output))
    if written.ignored:
        echo(f"{source}: not used by the model: {', '.join(written.ignored)}")
    for column, count in written.unknown.items():
        echo(f"{source}: column '{column}': {count} cells hold a category unknown to the model")
    echo(f"{written.rows} predictions in {output}")
    return {"model": model, "output": output, **written._asdict()}


if __name__ == "__main__":
    run(command)
