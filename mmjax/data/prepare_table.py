"""A CSV file becomes Prepared: read, understood, checked, dealt, encoded, looked at.

The file is read once, chunk by chunk; what is kept of it, and the encoded rows, lie in memory (resident) or in the
cache on disk (streamed). Nothing else differs, so both give the same bits.

Streamed, memory grows by about 80 bytes a row whatever the number of columns, and by those pages of the encoded rows
that the audit looks at, which the system takes back when it likes: 10,000,000 rows of 12 columns peak at 1.6 GB
(`benchmarks/large_table.py`). What breaks rules comes on top, a few hundred bytes for each cell.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from mmjax.backend import versions
from mmjax.config import Config, TabularData, target_columns
from mmjax.data.audit import audit
from mmjax.data.audit_columns import told_columns
from mmjax.data.audit_rows import Rows
from mmjax.data.cache import CacheWriter, NoCacheFolder, Tell, open_or_build, told
from mmjax.data.encode_survey import GapCounter, encode_rows, fit_rows, row_keys, unknown_counts
from mmjax.data.fingerprint import fingerprint
from mmjax.data.infer import infer_schema
from mmjax.data.loading import choose_loading
from mmjax.data.prepared import Prepared, audited_by, deal, golden_rows, not_features, split_cells
from mmjax.data.prepared_cache import restore, save
from mmjax.data.quarantine import quarantine_cells
from mmjax.data.schema_file import DeclaredSchema, read_schema_file
from mmjax.data.split import Split
from mmjax.data.survey import Place
from mmjax.data.table import read_layout
from mmjax.data.table_survey import Survey, cells_of, strips, survey_table, with_texts
from mmjax.data.target import may_be_classes
from mmjax.data.validate_survey import validate_survey
from mmjax.errors import DataError
from mmjax.schema import Batch, Schema

TABLE_FORMAT = 1
"""Of encoded rows in the cache: to be raised when the same file comes to be encoded in another way."""
BYTES_OF_TEXT = 3
"""A byte of CSV takes about as many when surveyed and encoded; one of a compressed file five times that."""

Store = Callable[[Iterable[Batch], int], Batch]
"""Takes encoded rows block by block, and how many there will be; returns them whole."""


def prepare_table(config: Config, data: TabularData, tell: Tell | None = None) -> Prepared:
    """Return the Prepared rows of a table, in memory or streamed. Raises DataError for anything wrong with them.

    `tell` hears how far a large file is read, and of waiting for another process that reads the same one.
    """
    streamed, note = choose_loading(config.data.loading, expected_bytes(data.path))
    if data.images is not None:  # which may be streamed, while the columns beside them stay in memory
        streamed, note = False, ""
    if streamed:
        try:
            return _with_note(_streamed(config, data, tell), note)
        except NoCacheFolder as error:
            if config.data.loading == "streamed":
                raise
            note = f"loading: resident, as there is no cache: {error}"
    found, digests = read_rows(config, data, strips(None), _in_memory, tell)
    digest = fingerprint(found.schema, found.split, found.batch, found.golden, digests)
    return _with_note(found._replace(fingerprint=digest), note)


def read_rows(
    config: Config, data: TabularData, place: Place, store: Store, tell: Tell | None = None
) -> tuple[Prepared, dict[str, str]]:
    """Return the Prepared rows of a table but for their fingerprint, and the digests of arrays that are known.

    `place` and `store` say where the columns lie; images that they name are in memory or in a cache of their own.
    """
    before = file_stamp(data.path)
    declared = read_schema_file(data.schema) if data.schema else None
    survey = survey_table(read_layout(data.path, delimiter=data.delimiter), data, declared, place, tell)
    schema, survey = understand(config, data, declared, survey)
    validation = validate_survey(survey, schema, declared, data.on_invalid)
    images = None
    if data.images is not None:
        from mmjax.data.table_images import load_row_images  # here: tables need no Pillow

        images = load_row_images(config, data.images, schema, survey, validation, tell)
        schema, validation = images.schema, images.validation
    keep, kept = validation.keep, np.flatnonzero(validation.keep)
    split, cells = _deal(config, data, schema, survey, kept)
    schema = fit_rows(schema, survey.columns, kept[split.train])
    gaps = GapCounter(schema)
    batch = store(gaps.watch(encode_rows(schema, survey.columns, keep)), len(kept))
    features = [column.name for column in schema.features]
    golden = cells_of(survey, features, kept[golden_rows(split, config.golden_rows)])
    row_keys, feature_keys = _keys(config, data, survey, features, keep)
    rows = Rows(schema, batch, split, survey.names[kept], row_keys=row_keys, feature_keys=feature_keys)
    if images is not None:
        golden |= images.cells(golden_rows(split, config.golden_rows))
        rows = images.beside(rows)
    groups, ordered_by = audited_by(config, cells)
    findings = audit(rows._replace(groups=groups, ordered_by=ordered_by), config.audit)
    if file_stamp(data.path) != before:
        raise DataError(f"{data.path}: the file changed while it was read; start again when it is whole")
    unknown = unknown_counts(schema, survey.columns, keep)
    notes = (
        *survey.notes,
        *validation.notes,
        *_left_out(schema, told_columns(schema) if config.audit.columns != "ignore" else frozenset()),
        *split.notes,
        *gaps.notes(unknown),
        *_unknown_notes(schema, unknown),
        *(images.notes if images else ()),
    )
    quarantined = (*survey.quarantined, *quarantine_cells(validation))
    prepared = Prepared(schema, rows.names, split, rows.batch, golden, notes, quarantined, findings)
    if images is None:
        return prepared, {}
    return prepared._replace(streamed=images.streamed), images.pixels.digests


def _keys(
    config: Config, data: TabularData, survey: Survey, features: list[str], keep: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the `row_keys` and `feature_keys` of Rows."""
    told = (data.id_column, config.split.column if config.split.strategy == "column" else None)  # no part of a copy
    told += data.images.columns if data.images else ()  # their bytes are
    telling = [name for name in survey.columns if name not in told]
    rows, of_features = row_keys(survey.columns, (telling, features), keep)
    return rows, of_features


def _deal(
    config: Config, data: TabularData, schema: Schema, survey: Survey, kept: np.ndarray
) -> tuple[Split, np.ndarray | None]:
    """Return the Split of the kept rows, and their cells of `split.column`."""
    assigned = split_cells(config, survey.columns)
    groups = None if assigned is None else assigned.cells().read()[kept]
    targets = schema.target.columns if schema.target.classes else ()
    labelled = {name: survey.columns[name].cells().read()[kept] for name in targets}
    return deal(config, schema, labelled, len(kept), groups, data, survey.lines[kept]), groups


def understand(
    config: Config, data: TabularData, declared: DeclaredSchema | None, survey: Survey
) -> tuple[Schema, Survey]:
    """Return the Schema of a table, without vocabularies, and its Survey with all texts that are needed."""
    targets = [name for name in target_columns(data) if name in survey.columns]
    several = len(targets) > 1
    needed = [name for name in targets if several or may_be_classes(survey.columns[name].facts, data.inference)]
    survey = with_texts(survey, needed, data) if needed else survey
    schema = infer_schema(
        survey.columns,
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
        images=data.images.columns if data.images else (),
        lines=survey.lines,
    )
    split_cells(config, survey.columns)
    names = [column.name for column in schema.category_columns]
    names += [config.split.column] if config.split.column is not None else []
    names += data.images.columns if data.images else ()
    return schema, with_texts(survey, names, data)


def expected_bytes(path: str) -> int:
    """Return about how much memory a table takes when it is surveyed and encoded; 0 where there is none."""
    size = os.stat(path).st_size if os.path.exists(path) else 0
    return size * BYTES_OF_TEXT * (5 if path.endswith(".gz") else 1)


def file_stamp(path: str) -> tuple[int, ...]:
    """Return what changes whenever a file does: device, inode, size, and nanoseconds of its last changes."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _streamed(config: Config, data: TabularData, tell: Tell | None) -> Prepared:
    """Return the Prepared rows of a table, mapped from the cache, where an unchanged file is not read again."""

    def build(writer: CacheWriter) -> dict:
        folder = writer.folder / "survey"
        folder.mkdir()
        with told(writer.folder.parent, writer):
            found, _ = read_rows(config, data, strips(folder), partial(_in_cache, writer), tell)
        shutil.rmtree(folder)
        return save(found, writer)

    cached = open_or_build(config.data.cache, _cache_key(config, data), build, tell)
    return _with_note(restore(cached), cached.note)


def _cache_key(config: Config, data: TabularData) -> dict:
    """Return everything that decides what `read_rows` gives."""
    schema = Path(data.schema) if data.schema else None
    return {
        "table": TABLE_FORMAT,
        "mmjax": versions().get("mmjax", ""),  # another may understand the same cells otherwise, or find other things
        "path": os.path.abspath(data.path),
        "stamp": file_stamp(data.path),
        "schema": schema.read_text(encoding="utf-8-sig", errors="replace") if schema and schema.is_file() else "",
        "config": [msgspec.to_builtins(part) for part in (data, config.split, config.audit)],
        "seed": config.seed,
        "golden_rows": config.golden_rows,
    }


def _in_memory(blocks: Iterable[Batch], rows: int) -> Batch:
    whole: Batch = {}
    first = 0
    for block in blocks:
        for name, values in block.items():
            if name not in whole:
                whole[name] = np.empty((rows, *values.shape[1:]), values.dtype)
            whole[name][first : first + len(values)] = values
        first += len(block["label"])
    return whole


def _in_cache(writer: CacheWriter, blocks: Iterable[Batch], rows: int) -> Batch:
    for block in blocks:
        if not writer.expected and len(block["label"]):  # a block may hold none of the rows to keep
            writer.expect(sum(values.nbytes for values in block.values()) // len(block["label"]) * rows)
        writer.append(block)
    return writer.written()


def _with_note(prepared: Prepared, note: str) -> Prepared:
    return prepared._replace(notes=(*prepared.notes, note)) if note else prepared


def _left_out(schema: Schema, told: frozenset[str]) -> Iterator[str]:
    """Yield a line for each column that is left out, but for those that the audit has `told` of."""
    for column in schema.of_kind("identifier", "constant", "text"):
        if column.name not in told:
            yield f"{column.name}: left out, {column.kind}: {column.reason}"


def _unknown_notes(schema: Schema, unknown: dict[str, tuple[int, int]]) -> Iterator[str]:
    """Yield a line for each column with categories that no training row has, or that are not in its enum."""
    for name, (cells, categories) in unknown.items():
        if schema.column(name).fixed_vocabulary:
            hold = f"hold a value that is not in the schema file's enum ({categories:,} distinct)"
            yield f"{name}: {cells:,} cells of all rows, training rows included, {hold}; they count as unknown"
            continue
        yield (
            f"{name}: {cells:,} cells of validation and test rows hold one of {categories} categories "
            "that no training row has; they count as unknown"
        )
