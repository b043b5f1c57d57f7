"""A CSV file becomes Prepared: read, understood, checked, dealt, encoded."""

import msgspec
import numpy as np

from mmjax.config import Config, TabularData
from mmjax.data.encode import encode, unknown_categories
from mmjax.data.fingerprint import fingerprint
from mmjax.data.infer import fit_vocabulary, infer_schema
from mmjax.data.prepared import Prepared, deal, golden_rows, not_features, split_cells
from mmjax.data.quarantine import answered_rows, quarantine_cells
from mmjax.data.schema_file import read_schema_file
from mmjax.data.table import Table, read_table
from mmjax.data.validate import validate_rows
from mmjax.errors import DataError
from mmjax.schema import DATETIME_PARTS, Batch, Column, Columns, Schema


def prepare_table(config: Config, data: TabularData) -> Prepared:
    """Return the Prepared rows of a table. Raises DataError for anything wrong with them."""
    declared = read_schema_file(data.schema) if data.schema else None
    table, dropped, unanswered = answered_rows(read_table(data.path, delimiter=data.delimiter), data, declared)
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
        exclude=not_features(config),
        lines=table.lines,
    )
    validation = validate_rows(table.columns, schema, table.lines, table.path, data.on_invalid)
    columns = {name: cells[validation.keep] for name, cells in table.columns.items()}
    lines = table.lines[validation.keep]
    names = columns[data.id_column] if data.id_column else lines.astype(object)
    split = deal(config, schema, columns, len(lines), split_cells(config, columns), data, lines)
    schema = fit_vocabulary(schema, {name: cells[split.train] for name, cells in columns.items()})
    batch = encode_table(schema, Table(columns, lines, table.path))
    left_out = [f"{c.name}: left out, {c.kind}: {c.reason}" for c in schema.of_kind("identifier", "constant", "text")]
    cells = (*_missing_notes(schema, batch), *_unknown_notes(schema, columns, batch))
    notes = (*dropped, *validation.notes, *left_out, *split.notes, *cells)
    rows = golden_rows(split, config.golden_rows)
    golden = {column.name: columns[column.name][rows] for column in schema.features}
    found = fingerprint(schema, split, batch, golden)
    quarantined = (*unanswered, *quarantine_cells(validation))
    return Prepared(schema, names, split, batch, golden, notes, quarantined, fingerprint=found)


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
