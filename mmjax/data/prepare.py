"""From a data section of the config to encoded rows with their splits: the first half of every training run."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from mmjax.config import Config, ImageData, Inference, TabularData
from mmjax.data.cells import missing_mask, texts
from mmjax.data.encode import encode, encode_label, unknown_categories
from mmjax.data.infer import fit_vocabulary, infer_schema, infer_target
from mmjax.data.schema_file import read_schema_file
from mmjax.data.split import Split, Strategy, split_rows
from mmjax.data.table import Table, read_table
from mmjax.data.validate import validate_rows
from mmjax.errors import DataError
from mmjax.schema import DATETIME_PARTS, Batch, Column, Columns, ImageSpec, Schema, Target

if TYPE_CHECKING:  # tables need no Pillow
    from mmjax.data.images import ImageSource

LARGEST_DEFAULT_PX = 64
"""Images larger than this are brought to it unless the config asks for more: two cores train it in minutes."""


class Prepared(NamedTuple):
    """Rows ready to train on, all on the host."""

    schema: Schema
    columns: Columns
    """As read, the kept rows only."""
    names: np.ndarray
    """object[N]: what identifies a row: its id, its path, or its line in the file."""
    split: Split
    batch: Batch
    """All kept rows, encoded, with `label` (and `weight`)."""
    notes: tuple[str, ...]
    """Everything dropped, changed or decided about the data, each a line with a count and a reason."""


def prepare(config: Config) -> Prepared:
    """Return the Prepared rows of a config. Raises DataError for anything wrong with them."""
    if config.data.tabular is not None:
        return _prepare_table(config, config.data.tabular)
    assert config.data.image is not None, "the config names one modality"
    return _prepare_images(config, config.data.image)


def drop_unanswered(table: Table, target: str, missing_markers: tuple[str, ...]) -> tuple[Table, tuple[str, ...]]:
    """Return the table without the rows whose target is missing, and a note that counts them.

    A table without that column, or without any value in it, stays as it is: others refuse it.
    """
    if target not in table.columns:
        return table, ()
    gaps = missing_mask(texts(table.columns[target]), missing_markers)
    if not gaps.any() or gaps.all():
        return table, ()
    kept = Table({name: cells[~gaps] for name, cells in table.columns.items()}, table.lines[~gaps], table.path)
    count, first = f"{gaps.sum():,} of {len(gaps):,} rows", table.lines[gaps][0]
    return kept, (f"{table.path}: dropped {count} without a value of '{target}', the first on line {first}",)


def encode_table(schema: Schema, table: Table) -> Batch:
    """Return the Batch of a table with its answers; DataError with file and line of what cannot be encoded."""
    try:
        return encode(schema, table.columns, label=True)
    except DataError:
        refuse_cells(schema, table, label=True)
        raise


def refuse_cells(schema: Schema, table: Table, *, label: bool = False) -> None:
    """Raise DataError with file and line of every number and date (with `label`, answer) that `encode` cannot take."""
    columns = [
        Column(name=column.name, kind=column.kind, datetime_format=column.datetime_format)
        for column in schema.of_kind("numeric", "datetime")
    ]
    answers = (schema.target.column, schema.weight_column) if label else ()
    columns += [Column(name=name, kind="ignored") for name in answers if name is not None]
    wanted = {column.name: table.columns[column.name] for column in columns if column.name in table.columns}
    plain = msgspec.structs.replace(schema, columns=tuple(columns))
    validate_rows(wanted, plain, table.lines, table.path, "fail")


def _prepare_table(config: Config, data: TabularData) -> Prepared:
    table, dropped = read_table(data.path, delimiter=data.delimiter), ()
    if data.on_invalid == "drop":
        table, dropped = drop_unanswered(table, data.target_column, data.missing_markers)
    declared = read_schema_file(data.schema) if data.schema else None
    schema = infer_schema(
        table.columns,
        target_column=data.target_column,
        task=data.task,
        positive_class=data.positive_class,
        id_column=data.id_column,
        ignore_columns=data.ignore_columns,
        weight_column=data.weight_column,
        missing_markers=data.missing_markers,
        inference=data.inference,
        declared=declared,
        exclude=(config.split.column,) if config.split.column else (),
        lines=table.lines,
    )
    validation = validate_rows(table.columns, schema, table.lines, table.path, data.on_invalid)
    columns = {name: cells[validation.keep] for name, cells in table.columns.items()}
    lines = table.lines[validation.keep]
    names = columns[data.id_column] if data.id_column else lines.astype(object)
    assigned = columns[config.split.column] if config.split.column else None
    split = _split(config, schema, columns, len(lines), assigned, data)
    schema = fit_vocabulary(schema, {name: cells[split.train] for name, cells in columns.items()})
    batch = encode_table(schema, Table(columns, lines, table.path))
    left_out = [f"{c.name}: left out, {c.kind}: {c.reason}" for c in schema.of_kind("identifier", "constant", "text")]
    cells = (*_missing_notes(schema, batch), *_unknown_notes(schema, columns, batch))
    notes = (*dropped, *validation.notes, *left_out, *split.notes, *cells)
    return Prepared(schema, columns, names, split, batch, notes)


def _missing_notes(schema: Schema, batch: Batch) -> list[str]:
    """Return a line that counts the missing numbers and dates of each column, or none."""
    if "numeric" not in batch:
        return []
    names = [name.removesuffix(f".{DATETIME_PARTS[0]}") for name in schema.numeric_features]
    counts = np.isnan(batch["numeric"]).sum(axis=0)
    cyclic = set(schema.cyclic_features)
    found = [f"{n} {c:,}" for i, (n, c) in enumerate(zip(names, counts, strict=True)) if c and i not in cyclic]
    return [f"missing numbers, filled and flagged by an indicator: {', '.join(found)}"] if found else []


def _unknown_notes(schema: Schema, columns: Columns, batch: Batch) -> list[str]:
    """Return a line for each column with categories that no training row has."""
    if "category" not in batch:
        return []
    rows = np.flatnonzero((batch["category"] == 0).any(axis=1))  # missing or unknown
    counts = unknown_categories(schema, {name: cells[rows] for name, cells in columns.items()})
    return [
        f"{name}: {sum(found.values()):,} cells of validation and test rows hold one of {len(found)} categories "
        "that no training row has; they count as unknown"
        for name, found in counts.items()
    ]


def _prepare_images(config: Config, data: ImageData) -> Prepared:
    from mmjax.data.images import apply_policy, read_images, scan_images

    by_column = config.split.column
    source = read_images(data, keep=(by_column,) if by_column else ())
    bad = scan_images(source.columns[source.image_column].tolist())
    source, _, notes = apply_policy(source, bad, data.on_invalid)
    if by_column and by_column not in source.columns:
        raise DataError(
            f"split.column: expected with a CSV of images only, got '{by_column}' and {data.path}; remove it"
        )
    assigned = source.columns[by_column] if by_column else source.assigned
    schema = Schema(
        target=image_target(source, data),
        image=image_spec(source, data),
        id_column=data.id_column,
        weight_column=data.weight_column,
    )
    split = _split(config, schema, source.columns, len(source.names), assigned, data)
    schema = fit_vocabulary(schema, {name: cells[split.train] for name, cells in source.columns.items()})
    batch = encode(schema, source.columns, label=True)
    return Prepared(schema, source.columns, source.names, split, batch, (*source.notes, *notes, *split.notes))


def image_target(source: "ImageSource", data: ImageData, inference: Inference = Inference()) -> Target:
    """Return the target: folders hold classes, whatever their names; that of a CSV is judged by its values."""
    folders = data.task is msgspec.UNSET and Path(data.path).is_dir()
    target = infer_target(
        source.columns[source.target_column],
        source.target_column,
        task="classification" if folders else data.task,
        positive_class=data.positive_class,
        inference=inference,
    )
    return msgspec.structs.replace(target, reason="folders and idx files hold classes") if folders else target


def image_spec(source: "ImageSource", data: ImageData) -> ImageSpec:
    """Return how images are brought to one size: as the config says, or `default_image_size`."""
    size = default_image_size(source) if data.image_size is msgspec.UNSET else data.image_size
    return ImageSpec(
        columns=(source.image_column,), height_px=size[0], width_px=size[1], resize=data.resize, filter=data.filter
    )


def default_image_size(source: "ImageSource") -> tuple[int, int]:
    """Return [height, width]: the images' own size when they all share one, else a square of their median side.

    At most LARGEST_DEFAULT_PX, at least 8.
    """
    from mmjax.data.decode import probe_image

    infos = [probe_image(cell) for cell in source.columns[source.image_column][:: max(1, len(source.names) // 200)]]
    sizes = {(info.height_px, info.width_px) for info in infos}
    side = int(np.median([min(size) for size in sizes]))
    height, width = sizes.pop() if len(sizes) == 1 else (side, side)
    return (min(max(height, 8), LARGEST_DEFAULT_PX), min(max(width, 8), LARGEST_DEFAULT_PX))


def _split(
    config: Config,
    schema: Schema,
    columns: Columns,
    n: int,
    assigned: np.ndarray | None,
    data: TabularData | ImageData,
) -> Split:
    strategy, notes = config.split.strategy, ()
    if strategy is msgspec.UNSET:
        strategy, why = _default_strategy(schema, assigned)
        notes = (f"split: {strategy}, as {why}",)
    if strategy == "folders" and assigned is None:
        raise DataError(f"split.strategy: expected train, val and test folders in {data.path}, got none; remove it")
    if strategy == "stratified" and schema.target.task == "regression":
        why = schema.target.reason
        raise DataError(f"split.strategy: expected random for regression ({why}), got stratified; change one")
    classes = schema.target.classes
    labels = encode_label(schema, columns) if classes else None
    split = split_rows(
        n,
        strategy=strategy,
        fractions=(data.train_split, data.validation_split, data.test_split),
        seed=config.seed,
        labels=labels,
        classes=classes,
        assigned=assigned,
    )
    untaught = [name for i, name in enumerate(classes) if labels is not None and i not in labels[split.train]]
    if untaught:
        notes = (*notes, f"split: classes without a training row, which cannot be learnt: {', '.join(untaught)}")
    return split._replace(notes=(*notes, *split.notes))


def _default_strategy(schema: Schema, assigned: np.ndarray | None) -> tuple[Strategy, str]:
    if assigned is not None:
        return "folders", "there are folders or files for train and others"
    if schema.target.task == "classification":
        return "stratified", "the target is one of classes"
    return "random", "the target is a number"
