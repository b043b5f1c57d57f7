"""`python -m mmjax.evaluate`: every metric of a registered model on data with known answers."""

import sys
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np

from mmjax.analysis.evaluation import Evaluation, evaluate_scores
from mmjax.analysis.present import print_results
from mmjax.analysis.report import Report
from mmjax.artifact.bundle import load_bundle
from mmjax.artifact.models import load_model, model_folder
from mmjax.artifact.predictor import Predictor, load_predictor
from mmjax.backend import configure
from mmjax.cli import echo, json_option, run
from mmjax.data.encode import check_columns, encode
from mmjax.data.images import apply_policy, read_images, scan_images
from mmjax.data.table import read_table
from mmjax.errors import ConfigError, DataError
from mmjax.schema import Columns


def evaluate_model(
    model: Predictor | str | Path, data: str | Path, *, registry: str = "registry", split: str = ""
) -> Evaluation:
    """Return the Evaluation of a model on a CSV or image folder in the form it was trained on.

    `split` (`train`, `validation` or `test`) takes only that part of a folder that has such parts. Raises DataError
    for rows that the model's schema refuses, and for labels that are none of its classes.
    """
    predictor = model if isinstance(model, Predictor) else load_model(model, registry=registry)
    columns = read_labelled(predictor, Path(data), split)
    batch = encode(predictor.schema, columns, label=True)
    return evaluate_scores(predictor.schema, predictor.score(columns), batch)


def read_labelled(predictor: Predictor, path: Path, split: str) -> Columns:
    """Return the columns of labelled data, checked against the model's schema."""
    config, schema = predictor.config.data, predictor.schema
    if config.tabular is not None:
        if split:
            raise ConfigError("--split: expected only with a folder of images that has parts; a CSV has none")
        columns = read_table(str(path), delimiter=config.tabular.delimiter).columns
        check_columns(schema, tuple(columns), where=str(path))
        if schema.target.column not in columns:
            raise DataError(f"{path}: expected the target column '{schema.target.column}', got {', '.join(columns)}")
        return columns
    assert config.image is not None, "the config names one modality"
    source = read_images(msgspec.structs.replace(config.image, path=str(path)), minimum_classes=1)
    source, _, _ = apply_policy(source, scan_images(source.columns[source.image_column].tolist()), "fail")
    if not split:
        return source.columns
    if source.assigned is None:
        raise ConfigError(f"--split {split}: expected a folder with train, val and test in it, got {path} without")
    return {name: cells[np.asarray(source.assigned == split)] for name, cells in source.columns.items()}


def evaluation_report(trained: Report, evaluation: Evaluation) -> Report:
    """Return the report of a model with the results on other data in the place of its own test results."""
    return trained | {
        "metrics": {"test": evaluation.metrics},
        "per_class": {"test": evaluation.per_class},
        "confusion": {"test": evaluation.confusion},
        "data": trained["data"] | {"split_sizes": {"test": evaluation.rows}},
    }


@click.command(name="evaluate", help="Score a registered model on data with known answers.")
@click.option(
    "--model", required=True, metavar="NAME[:VERSION|@ALIAS]", help="A registered model, or a bundle's folder."
)
@click.option("--data", required=True, type=click.Path(), help="CSV or image folder, with answers.")
@click.option(
    "--split", type=click.Choice(["train", "validation", "test"]), help="Only this part of a folder with parts."
)
@click.option(
    "--registry", default="registry", show_default=True, type=click.Path(), help="Where models are registered."
)
@json_option
def command(model: str, data: str, split: str | None, registry: str) -> dict[str, Any]:
    """Score a registered model."""
    for note in configure().notes:
        echo(note)
    folder = model_folder(model, registry=registry)
    evaluation = evaluate_model(load_predictor(folder), data, split=split or "")
    print_results(evaluation_report(load_bundle(folder).contents.report, evaluation), sys.stdout)
    return {"model": model, "data": data, **evaluation._asdict()}


if __name__ == "__main__":
    run(command)
