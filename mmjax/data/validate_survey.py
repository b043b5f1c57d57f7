"""The rules of a schema file against the survey of a table: each distinct text once, the file again if need be.

A column whose texts are gone is read again unless its facts prove that no cell can break a rule.
"""

import numpy as np

from mmjax.config import Policy
from mmjax.data.facts import Facts
from mmjax.data.schema_file import DeclaredSchema
from mmjax.data.table_survey import Survey, answered_chunks
from mmjax.data.validate import Fault, Validation, column_faults, is_number, join_faults, judge, of_rows
from mmjax.schema import Column, Schema


def validate_survey(survey: Survey, schema: Schema, declared: DeclaredSchema | None, policy: Policy) -> Validation:
    """Return what `validate_rows` does of the rows of a table.

    Only what a schema file declares can be broken: anything else was inferred from these very cells.
    """
    names = list(declared.columns) if declared else []
    faults, again = [], []
    for column in (schema.column(name) for name in names):
        seen = survey.columns[column.name]
        if seen.coded is not None:
            found = column_faults(column, seen.coded.texts, schema)
            faults += [of_rows(fault, seen.coded.codes.read()) for fault in found]
        elif not _surely_obeys(column, seen.facts, schema):
            again.append(column)
    faults = join_faults([*faults, *_faults_read_again(survey, schema, again)])
    faults.sort(key=lambda fault: names.index(fault.column))
    of_classes = faults and schema.target.task == "classification"
    targets = survey.columns[schema.target.column].cells().read() if of_classes else None
    return judge(faults, targets, schema, survey.lines, survey.layout.path, policy)


def _faults_read_again(survey: Survey, schema: Schema, columns: list[Column]) -> list[Fault]:
    faults, first = [], 0
    for table in answered_chunks(survey) if columns else ():
        for column in columns:
            found = column_faults(column, table.columns[column.name], schema)
            faults += [fault._replace(rows=fault.rows + first) for fault in found]
        first += len(table.lines)
    return faults


def _surely_obeys(column: Column, facts: Facts, schema: Schema) -> bool:
    """Return whether these facts leave no room for a broken rule."""
    traits, is_target = facts.traits, column.name in schema.target.columns
    if column.pattern is not None or column.fixed_vocabulary or column.kind == "boolean":
        return False
    if (column.required and facts.missing) or (is_target and schema.target.classes):
        return False
    if column.kind == "datetime" and column.datetime_format not in traits.formats:
        return False
    if not is_number(column, schema):
        return True
    low = -np.inf if column.minimum is None else column.minimum
    high = np.inf if column.maximum is None else column.maximum
    within = low <= traits.lowest and traits.highest <= high
    return facts.all_numbers and within and (traits.whole or not column.integer)
