"""`python -m mmjax.init`: looks at a CSV or a folder of images and writes a config (and schema) that train at once."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec

from mmjax.analysis.present import describe_schema
from mmjax.artifact.files import write_atomic
from mmjax.cli import echo, json_option, run
from mmjax.config import ImageData, Inference, Task
from mmjax.config_load import load_config
from mmjax.data.images import read_images
from mmjax.data.infer import infer_schema, infer_target
from mmjax.data.prepare import image_spec, image_task
from mmjax.data.schema_file import schema_file_text
from mmjax.data.table import read_table
from mmjax.errors import ConfigError, DataError
from mmjax.schema import Schema

LIKELY_TARGETS = ("target", "label", "class", "y", "outcome")
"""Column names that are taken for the target when none is named; else the last column is."""


class Draft(NamedTuple):
    """What init would write."""

    config: str
    """YAML, with comments."""
    schema: Schema
    schema_file: str | None
    """JSON for a table; None for images."""
    target_why: str


def draft_table(path: Path, *, target: str | None, task: Task | None, schema_path: str, inference: Inference) -> Draft:
    """Return the Draft for a CSV. Raises DataError for what cannot be read or has no usable target."""
    table = read_table(str(path))
    target, why = (target, "named by --target") if target else likely_target(list(table.columns))
    schema = infer_schema(
        table.columns,
        target_column=target,
        task=task or msgspec.UNSET,
        inference=inference,
        lines=table.lines,
    )
    config = TABLE_CONFIG.format(
        path=_scalar(str(path)),
        schema=_scalar(schema_path),
        target=_scalar(target),
        task=schema.target.task,
        why=_comment(f"{why}; {schema.target.reason}"),
        metric="accuracy, ROC-AUC, log-loss ..." if schema.target.task == "classification" else "RMSE, MAE, R2 ...",
    )
    return Draft(config, schema, schema_file_text(schema), why)


def draft_images(path: Path, *, target: str | None, task: Task | None) -> Draft:
    """Return the Draft for a folder of images, or for a CSV of image paths and labels."""
    data = ImageData(path=str(path), task=task or msgspec.UNSET)
    data = msgspec.structs.replace(data, target_column=target) if target else data
    source = read_images(data)
    found = infer_target(source.columns[source.target_column], source.target_column, task=image_task(data))
    schema = Schema(target=found, image=image_spec(source, data))
    assert schema.image is not None, "an image schema"
    config = IMAGE_CONFIG.format(
        path=_scalar(str(path)),
        height=schema.image.height_px,
        width=schema.image.width_px,
        images=len(source.names),
        classes=_comment(", ".join(found.classes[:10]) + (" ..." if len(found.classes) > 10 else "")),
        target=f"    target_column: {_scalar(target)}\n" if target else "",
    )
    return Draft(config, schema, None, "class folders" if not target else "named by --target")


def likely_target(names: list[str]) -> tuple[str, str]:
    """Return the column to predict when none is named, and why it was chosen."""
    for name in names:
        if name.lower() in LIKELY_TARGETS:
            return name, f"not named by --target: taken for its name '{name}'"
    return names[-1], "not named by --target: the last column was taken"


def _scalar(text: str) -> str:
    """Return text as a YAML scalar that reads back as this text."""
    plain = re.fullmatch(r"[A-Za-z_./][A-Za-z0-9_./-]*", text) and text.lower() not in ("true", "false", "null")
    return text if plain else json.dumps(text, ensure_ascii=False)


def _comment(text: str) -> str:
    return " ".join(text.split())


TABLE_CONFIG = """\
# Made by `mmjax init`. Every key and its options: docs/CONFIG.md. Keys left out are decided when training starts,
# from the look of the data, and printed.
data:
  tabular:
    path: {path}
    schema: {schema}  # what each column is: edit it where the guess is wrong
    target_column: {target}  # {why}
    task: {task}
    train_split: 0.7  # rows to learn from
    validation_split: 0.1  # rows to stop by and to choose the best epoch
    test_split: 0.2  # rows to report {metric} on
    # id_column: NAME  # names the rows in predictions
    # ignore_columns: [NAME]
    # on_invalid: drop  # rows that violate the schema: fail (default), drop or report

# model:
#   name: mlp
#   architecture: {{hidden_layers: [256, 256], dropout: 0.1}}

# training:
#   epochs: 30
#   learning_rate: 0.001

seed: 0  # the same seed gives the same split and the same model
"""

IMAGE_CONFIG = """\
# Made by `mmjax init`. Every key and its options: docs/CONFIG.md. Keys left out are decided when training starts,
# from the look of the data, and printed.
data:
  image:
    path: {path}  # {images} images: {classes}
{target}    image_size: [{height}, {width}]  # larger is slower and often better
    train_split: 0.7
    validation_split: 0.1  # images to stop by and to choose the best epoch
    test_split: 0.2
    augmentation: {{horizontal_flip: true}}  # false where left and right matter, as in text
    # on_invalid: drop  # files that are no readable image: fail (default), drop or report

# model:
#   name: resnet18

# training:
#   epochs: 30

seed: 0  # the same seed gives the same split and the same model
"""


def is_image_data(path: Path, target: str | None) -> bool:
    """Return whether `path` is a folder (images) rather than a table. Raises DataError when there is nothing."""
    if not path.exists():
        raise DataError(f"--data {path}: expected a CSV file or a folder of images, found nothing there")
    if path.is_dir() and target:
        raise ConfigError("--target: expected with a CSV only; the classes of an image folder are its folders")
    return path.is_dir()


@click.command(name="init", help="Write a commented config from a look at a CSV or a folder of images.")
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="A CSV (.csv, .csv.gz) or a folder of images."
)
@click.option(
    "--target", help="The column to predict  [default: the one named target, label, class or y, else the last]"
)
@click.option("--task", type=click.Choice(["classification", "regression"]), help="[default: by the target's values]")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE", help="The config to write  [default: NAME.yaml]"
)
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option(
    "--identifier-ratio", type=click.FloatRange(0, 1), default=Inference().identifier_unique_ratio, show_default=True
)
@click.option(
    "--text-words", type=click.FloatRange(0, min_open=True), default=Inference().text_mean_words, show_default=True
)
@click.option("--max-categories", type=click.IntRange(1), default=Inference().max_categories, show_default=True)
@click.option("--max-classes", type=click.IntRange(1), default=Inference().max_integer_classes, show_default=True)
@json_option
def command(
    data: Path,
    target: str | None,
    task: Task | None,
    output: Path | None,
    force: bool,
    identifier_ratio: float,
    text_words: float,
    max_categories: int,
    max_classes: int,
) -> dict[str, Any]:
    """Write a config."""
    images = is_image_data(data, target)
    output = output or Path(config_stem(data) + ".yaml")
    schema_path = output.with_suffix(".schema.json")
    wanted = [output] if images else [output, schema_path]
    if not force and (there := [str(path) for path in wanted if path.exists()]):
        raise ConfigError(f"{', '.join(there)}: exists already; name another --output, or add --force to replace")
    inference = Inference(
        identifier_unique_ratio=identifier_ratio,
        text_mean_words=text_words,
        max_categories=max_categories,
        max_integer_classes=max_classes,
    )
    if images:
        draft = draft_images(data, target=target, task=task)
    else:
        draft = draft_table(data, target=target, task=task, schema_path=str(schema_path), inference=inference)
        write_atomic(schema_path, (draft.schema_file or "").encode())
    write_atomic(output, draft.config.encode())
    load_config(str(output))  # what is written must load
    echo(describe_schema(draft.schema))
    echo(f"target {draft.schema.target.column}: {draft.target_why}")
    echo(f"wrote {' and '.join(map(str, wanted))}; next: mmjax train --config {output}")
    return {
        "config": str(output),
        "schema": None if images else str(schema_path),
        "target": draft.schema.target.column,
        "task": draft.schema.target.task,
        "columns": {column.name: {"kind": column.kind, "reason": column.reason} for column in draft.schema.columns},
    }


def config_stem(data: Path) -> str:
    """Return a config name for a data path: its stem, with what no name may hold replaced by `-`."""
    stem = data.resolve().name.removesuffix(".gz").removesuffix(".csv")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:80] or "model"


if __name__ == "__main__":
    run(command)
