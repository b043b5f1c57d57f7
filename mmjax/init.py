"""`python -m mmjax.init`: looks at a CSV or a folder of images and writes a config (and schema) that train at once."""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import click
import msgspec
import numpy as np

from mmjax.analysis.present import describe_schema
from mmjax.analysis.tables import printable
from mmjax.artifact.files import NAME, write_atomic
from mmjax.cli import echo, json_option, run
from mmjax.config import ImageData, Inference, TabularData, Task
from mmjax.config_drafts import IMAGE_CONFIG, MEASURED, SHARES, TABLE_CONFIG, TABLE_IMAGES, TABLE_NETWORK
from mmjax.config_load import load_config
from mmjax.config_yaml import resolve_scalar
from mmjax.data.folders import IMAGE_SUFFIXES
from mmjax.data.images import ImageSource, apply_policy, read_images, scan_images
from mmjax.data.infer import infer_schema
from mmjax.data.prepare_images import answered_images, image_spec, image_target
from mmjax.data.quarantine import answered_rows
from mmjax.data.schema_file import schema_file_text
from mmjax.data.table import Table, guess_delimiter, read_table
from mmjax.errors import ConfigError, DataError
from mmjax.schema import Schema, Target

LIKELY_TARGETS = ("target", "label", "class", "y", "outcome")
"""Column names, the likeliest first, that are taken for the target when none is named; else the last column is."""
LISTED = 20
"""Images that cannot be read, of which each has a line."""
LOOKED_AT = 100
"""So many cells of a column tell whether it names images."""


class Draft(NamedTuple):
    """What init would write."""

    config: str
    """YAML, with comments."""
    schema: Schema
    schema_file: str | None
    """JSON for a table; None for images."""
    target_why: str
    notes: tuple[str, ...]
    """What the user should know of how the data was taken."""


class Wish(NamedTuple):
    """What the command line says about the draft."""

    target: str | tuple[str, ...] | None = None
    """Several columns are labels."""
    task: Task | None = None
    inference: Inference = Inference()
    name: str | None = None
    """Of the model, where the config's file name cannot be it."""
    schema_path: str = ""
    with_columns: bool = False
    """Of a CSV with one column of images: learn from its other columns too."""


def draft(data: Path, wish: Wish) -> Draft:
    """Return the Draft for a CSV, a CSV that lists images, or a folder of images.

    Raises DataError for what cannot be read or has no usable target, ConfigError for a wish that is not one
    for such data.
    """
    if not data.exists():
        raise DataError(f"--data {data}: expected a CSV file or a folder of images, found nothing there")
    if data.is_dir():
        if wish.target:
            raise ConfigError("--target: expected with a CSV only; the classes of an image folder are its folders")
        if wish.with_columns:
            raise ConfigError("--with-columns: expected with a CSV only, a folder of images has no columns")
        return draft_folder(data, wish)
    if data.suffix.lower() in IMAGE_SUFFIXES:
        raise DataError(f"--data {data}: expected a CSV file or a folder of images, got an image; give its folder")
    delimiter = guess_delimiter(data)
    table = read_table(str(data), delimiter=delimiter)
    images, notes = find_image_columns(table)
    if wish.with_columns and not images:
        found = "; ".join(note.rsplit(": learning", 1)[0] for note in notes.values())
        found = found or f"{data}: none of {', '.join(map(repr, table.columns))} does"
        raise ConfigError(f"--with-columns: expected a column that names image files, found none; {found}")
    try:
        if len(images) == 1 and not wish.with_columns:
            made = draft_image_table(table, images[0], wish)
        else:
            made = draft_table(table, delimiter, wish, images)
    except DataError as error:
        lost = (note for name, note in notes.items() if name not in images)
        raise DataError([*error.problems, *lost]) from error
    return made._replace(notes=(*notes.values(), *made.notes))


def draft_table(table: Table, delimiter: str, wish: Wish, images: Sequence[str] = ()) -> Draft:
    """Return the Draft for a table to learn from, whose columns `images` name image files."""
    others = _beside(table, images)
    target, why = likely_target(others, wish.target)
    if wish.with_columns and not set(others) - set(_named(target)):
        told = "expected a column beside the images and the target, got none; leave it out"
        raise ConfigError(f"--with-columns: {told}")
    data = TabularData(path=table.path, target_column=target, task=wish.task or msgspec.UNSET, on_invalid="drop")
    table, dropped, _ = answered_rows(table, data, None)
    schema = _schema_of(table, target, wish, images)
    ids = [column.name for column in schema.of_kind("identifier")]
    rows = MEASURED[schema.target.task]
    config = TABLE_CONFIG.format(
        name=_name_line(wish),
        path=_scalar(table.path),
        delimiter="" if delimiter == "," else f"    delimiter: {_scalar(delimiter)}\n",
        schema=_scalar(wish.schema_path),
        target=_target(target),
        why=_comment(f"{why}; {schema.target.reason}"),
        task=schema.target.task,
        shares=SHARES.format(rows="rows", metric=f"rows to report {rows} on"),
        network="resnet18  # the network that looks at the images" if images else TABLE_NETWORK,
        images=TABLE_IMAGES.format(columns=", ".join(map(_scalar, images))) if images else "",
        id_column=_scalar(ids[0]) if ids else "NAME",
        drop=_drop_line("rows without a target" if dropped else ""),
    )
    return Draft(config, schema, schema_file_text(schema), why, dropped)


def _target(target: str | tuple[str, ...]) -> str:
    """Return the YAML of `target_column`: a column, or a list of labels."""
    return _scalar(target) if isinstance(target, str) else f"[{', '.join(map(_scalar, target))}]"


def _schema_of(table: Table, target: str | tuple[str, ...], wish: Wish, images: Sequence[str]) -> Schema:
    try:
        return infer_schema(
            table.columns,
            target_column=target,
            task=wish.task or msgspec.UNSET,
            inference=wish.inference,
            images=images,
            lines=table.lines,
        )
    except DataError as error:
        guessed = (
            () if wish.target else (f"--target: none was named, so '{target}' was taken; name the column to predict",)
        )
        raise DataError([*error.problems, *guessed]) from error


def draft_image_table(table: Table, column: str, wish: Wish) -> Draft:
    """Return the Draft for a CSV whose `column` holds paths of images."""
    others = _beside(table, (column,))
    target, why = likely_target(others, wish.target)
    data = ImageData(path=table.path, task=wish.task or msgspec.UNSET, image_column=column, target_column=target)
    made = _draft_images(data, why, wish)
    if not set(others) - set(_named(target)):
        return made
    return made._replace(notes=(*made.notes, "--with-columns: writes a config that learns from these columns too"))


def _beside(table: Table, images: Sequence[str]) -> list[str]:
    """Return the columns that are no images; DataError where there are only images."""
    others = [name for name in table.columns if name not in images]
    if not others:
        columns = ", ".join(map(repr, images))
        raise DataError(f"{table.path}: expected a column to predict beside the images {columns}, got none")
    return others


def _named(target: str | tuple[str, ...]) -> tuple[str, ...]:
    return (target,) if isinstance(target, str) else target


def draft_folder(path: Path, wish: Wish) -> Draft:
    """Return the Draft for a folder of class folders, of train, val and test folders, or of idx files."""
    return _draft_images(ImageData(path=str(path), task=wish.task or msgspec.UNSET), "the folder of each image", wish)


def _draft_images(data: ImageData, why: str, wish: Wish) -> Draft:
    dropping = msgspec.structs.replace(data, on_invalid="drop")
    source, unanswered, aside = answered_images(read_images(dropping), dropping)
    bad = scan_images(source.columns[source.image_column].tolist())
    where = [""] * len(source.names) if source.lines is None else [f"{data.path}:{line}: " for line in source.lines]
    unreadable = [
        f"{where[index]}{source.names[index].strip() or 'an empty cell'}: {reason}" for index, reason in bad[:LISTED]
    ]
    unreadable += [f"and {len(bad) - LISTED} more that are no images"] if len(bad) > LISTED else []
    source, _, dropped = apply_policy(source, bad, "drop")
    target = image_target(source, data, wish.inference)
    schema = Schema(target=target, image=image_spec(source, data))
    assert schema.image is not None, "an image schema"
    left_out = len(bad) + len(aside)
    classes = ", ".join(target.classes[:10]) + (" ..." if len(target.classes) > 10 else "")
    config = IMAGE_CONFIG.format(
        name=_name_line(wish),
        path=_scalar(data.path),
        what=_comment(f"{len(source.names)} images: {classes or 'a number each'}"),
        columns=_image_columns(data, target, why),
        height=schema.image.height_px,
        width=schema.image.width_px,
        shares=_image_shares(source),
        drop=_drop_line(f"{left_out} {'is' if left_out == 1 else 'are'} left out" if left_out else ""),
    )
    return Draft(config, schema, None, why, (*source.notes, *unanswered, *dropped, *unreadable))


def _image_columns(data: ImageData, target: Target, why: str) -> str:
    """Return the lines that say what the columns of a CSV are; of a folder only a task that was asked for."""
    task = f"    task: {target.task}\n"
    if Path(data.path).is_dir():
        return "" if data.task is msgspec.UNSET else task
    comment = _comment(f"{why}; {target.reason}")
    columns = f"    image_column: {_scalar(data.image_column)}\n    target_column: {_target(data.target_column)}"
    return f"{columns}  # {comment}\n{task}"


def _image_shares(source: ImageSource) -> str:
    if source.assigned is None:
        return SHARES.format(rows="images", metric="images to report on")
    parts = ", ".join(
        f"{count} {name}" for name, count in zip(*np.unique(source.assigned, return_counts=True), strict=True)
    )
    return f"    # the split is given: {parts}\n"


def likely_target(names: list[str], named: str | tuple[str, ...] | None = None) -> tuple[str | tuple[str, ...], str]:
    """Return the column to predict and why: the one named, else the likeliest by its name, else the last.

    Several that are named are labels.
    """
    if named is not None:
        return named, "named by --target"
    known = {name.strip().lower(): name for name in reversed(names)}
    for likely in LIKELY_TARGETS:
        if likely in known:
            return known[likely], f"not named by --target: taken for its name '{known[likely]}'"
    return names[-1], "not named by --target: the last column was taken"


def find_image_columns(table: Table) -> tuple[list[str], dict[str, str]]:
    """Return the columns that name image files beside the CSV, and in words why each was taken, or why not."""
    images, notes = [], {}
    for name, cells in table.columns.items():
        paths = [cell for cell in dict.fromkeys(cells[:LOOKED_AT].tolist()) if cell.strip()]
        named = [path for path in paths if PurePath(path).suffix.lower() in IMAGE_SUFFIXES]
        if 2 * len(named) <= len(paths):
            continue
        there = sum(os.path.isfile(os.path.join(os.path.dirname(table.path), path)) for path in named)
        found = f"{table.path}: column '{name}' names images, {there} of the first {len(paths)} are there"
        if 2 * there > len(paths):
            images.append(name)
            notes[name] = f"{found}: learning from these images"
        else:
            notes[name] = f"{found}: learning from the table instead; paths are relative to the CSV file"
    return images, notes


def _drop_line(left_out: str) -> str:
    """Return the key that leaves out what cannot be used and how its comment starts; a comment itself where all can."""
    return f"on_invalid: drop  # {left_out}; " if left_out else "# on_invalid: drop  # "


def _name_line(wish: Wish) -> str:
    return f"name: {wish.name}\n" if wish.name else ""


def _scalar(text: str) -> str:
    """Return text as a YAML scalar that reads back as this text."""
    if re.fullmatch(r"[A-Za-z_./][A-Za-z0-9_./-]*", text) and resolve_scalar(text) == text and text != "...":
        return text
    return '"' + "".join(_escaped(character) for character in text) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return character if character.isprintable() else f"\\U{ord(character):08x}"


def _comment(text: str) -> str:
    return printable(" ".join(text.split()))


@click.command(name="init", help="Write a commented config from a look at a CSV or a folder of images.")
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="A CSV (.csv, .csv.gz) or a folder of images."
)
@click.option(
    "--target",
    multiple=True,
    help="The column to predict; more than once: columns of two values, labels of which any number hold  [default: one "
    "named target, label, class or y, else the last]",
)
@click.option("--with-columns", is_flag=True, help="Beside the one column of images of a CSV, learn from the others.")
@click.option("--task", type=click.Choice(["classification", "regression"]), help="[default: by the target's values]")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE", help="The config to write  [default: NAME.yaml]"
)
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option(
    "--identifier-ratio",
    type=click.FloatRange(0, 1),
    default=Inference().identifier_unique_ratio,
    show_default=True,
    help="A column with this share of distinct values is an identifier.",
)
@click.option(
    "--text-words",
    type=click.FloatRange(0, min_open=True),
    default=Inference().text_mean_words,
    show_default=True,
    help="A text column of more words on average is free text.",
)
@click.option(
    "--max-categories",
    type=click.IntRange(1),
    default=Inference().max_categories,
    show_default=True,
    help="A text column of more distinct values is free text.",
)
@click.option(
    "--max-classes",
    type=click.IntRange(1),
    default=Inference().max_integer_classes,
    show_default=True,
    help="A whole-number target of at most so many values is classified.",
)
@json_option
def command(
    data: Path,
    target: tuple[str, ...],
    with_columns: bool,
    task: Task | None,
    output: Path | None,
    force: bool,
    identifier_ratio: float,
    text_words: float,
    max_categories: int,
    max_classes: int,
) -> dict[str, Any]:
    """Write a config."""
    output = output or Path(config_stem(data) + ".yaml")
    schema_path = output.with_suffix(".schema.json")
    inference = Inference(
        identifier_unique_ratio=identifier_ratio,
        text_mean_words=text_words,
        max_categories=max_categories,
        max_integer_classes=max_classes,
    )
    named = target if len(target) > 1 else target[0] if target else None
    name = None if NAME.fullmatch(output.stem) else config_stem(output)
    made = draft(data, Wish(named, task, inference, name, str(schema_path), with_columns))
    files = {output: made.config}
    if made.schema_file is not None:
        files = {schema_path: made.schema_file, output: made.config}
    _write(files, force=force)
    load_config(str(output))  # what is written must load
    echo(describe_schema(made.schema))
    for line in (f"target {made.schema.target.column}: {made.target_why}", *made.notes):
        echo(printable(line))
    written = " and ".join(str(path) for path in reversed(files))
    echo(f"wrote {written}; next: mmjax train --config {shlex.quote(str(output))}")
    return {
        "config": str(output),
        "schema": None if made.schema_file is None else str(schema_path),
        "target": made.schema.target.column,
        "target_why": made.target_why,
        "task": made.schema.target.task,
        "classes": made.schema.target.classes,
        "columns": {column.name: {"kind": column.kind, "reason": column.reason} for column in made.schema.columns},
        "notes": made.notes,
    }


def _write(files: dict[Path, str], *, force: bool) -> None:
    """Write the files, in order; ConfigError when one is there already, or there is no folder for it."""
    problems = []
    for path in files:
        if path.exists() and not force:
            problems.append(f"{path}: exists already; name another --output, or add --force to replace it")
        elif not path.parent.is_dir():
            problems.append(f"{path}: expected a folder {path.parent}, found none; make it, or name another --output")
    if problems:
        raise ConfigError(problems)
    for path, text in files.items():
        write_atomic(path, text.encode())


def config_stem(data: Path) -> str:
    """Return a config name for a data path: its stem, with what no name may hold replaced by `-`."""
    stem = re.sub(r"(\.(csv|tsv|txt|yaml|yml))?(\.gz)?$", "", data.resolve().name, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:80] or "model"


if __name__ == "__main__":
    run(command)
