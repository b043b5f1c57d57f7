"""Requests about rows of a table: a JSON body becomes the model that is meant and its rows, and these a Batch."""

from typing import Any, NamedTuple

import msgspec

from mmjax.errors import DataError
from mmjax.schema import Batch, Columns
from mmjax.serving.answering import Encoded, encoded
from mmjax.serving.engine import Engine, Served, select
from mmjax.serving.numbers import is_matrix, numeric_batch
from mmjax.serving.table_bodies import (
    TableRequest,
    columns_of_rows,
    decode_numbers,
    decode_table,
    decode_too_large,
    matrix_of_rows,
    refuse_too_large,
    table_rows,
)
from mmjax.serving.wire import Refused


class Table(NamedTuple):
    """What a body asks, and of which model."""

    served: Served
    rows: list[list[Any]]
    """Cells in the order of the schema's features."""
    numbers: bool
    """Whether the model takes a matrix, and all cells are floats or null."""
    deterministic: bool


def read_table(engine: Engine, body: bytes) -> Table:
    """Return what a JSON body asks; Refused when it is none, means no model, or has rows of other columns.

    DataError for names of columns that are not in the schema.
    """
    if (numbers := decode_numbers(body)) is not None and is_matrix(
        (served := _meant(engine, numbers)).predictor.schema
    ):
        return Table(served, table_rows(served.predictor.schema, numbers), True, numbers.deterministic is True)
    try:
        asked = decode_table(body)
    except Refused as refused:
        if "out of range" in str(refused) and (found := decode_too_large(body)) is not None:
            schema = _meant(engine, found).predictor.schema
            refuse_too_large(schema, table_rows(schema, found))
        raise
    served = _meant(engine, asked)
    return Table(served, table_rows(served.predictor.schema, asked), False, asked.deterministic is True)


def rows_of(table: Table) -> Columns | Encoded:
    """Return the rows as `answer` takes them; Refused, or DataError, naming cells that are wrong."""
    schema = table.served.predictor.schema
    if table.numbers:
        return Encoded(numeric_batch(schema, matrix_of_rows(table.rows)))
    return columns_of_rows(schema, table.rows)


def batch_of(table: Table) -> tuple[Columns | None, Batch]:
    """Return (columns, if it takes them; Batch) of the rows; Refused, or DataError, naming cells that are wrong."""
    rows = rows_of(table)
    return (None, rows.batch) if isinstance(rows, Encoded) else (rows, encoded(table.served, rows))


def _meant(engine: Engine, asked: TableRequest[Any]) -> Served:
    name = None if isinstance(asked.model, msgspec.UnsetType) else asked.model
    version = None if isinstance(asked.version, msgspec.UnsetType) else asked.version
    return select(engine, name, version, modality="table")


def bad_cells(error: DataError) -> Refused:
    """Return the refusal of a table with wrong cells or columns."""
    return Refused(400, "bad-cell", error.problems)
