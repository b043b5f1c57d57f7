"""From the survey of a table to encoded rows, block by block: no cell is parsed again."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np

from mmjax.data.audit_rows import mix
from mmjax.data.cells import missing_mask
from mmjax.data.encode import assemble, category_codes, class_codes
from mmjax.data.infer import fit_schema
from mmjax.data.survey import Seen, Values
from mmjax.schema import DATETIME_PARTS, Batch, Column, Columns, Schema

BLOCK_ROWS = 100_000


def fit_rows(schema: Schema, columns: Mapping[str, Seen], rows: np.ndarray) -> Schema:
    """Return the Schema with vocabularies and offsets of these rows, one column of numbers in memory at a time."""

    def learn_from(column: Column) -> list[str] | np.ndarray:
        seen = columns[column.name]
        if column.kind in ("categorical", "boolean"):
            texts, codes = seen.vocabulary()
            return texts[np.bincount(codes.read()[rows], minlength=len(texts)) > 0].tolist()
        values = seen.days(column.datetime_format) if column.kind == "datetime" else seen.numbers()
        return values.read()[rows]

    return fit_schema(schema, learn_from)


def encode_rows(schema: Schema, columns: Mapping[str, Seen], keep: np.ndarray) -> Iterator[Batch]:
    """Yield the rows to `keep` (bool[N]) encoded, with their labels and weights, as `encode` would; block by block."""
    values = _parsed(schema, columns)
    for start in range(0, len(keep), BLOCK_ROWS):
        kept = keep[start : start + BLOCK_ROWS]
        rows = slice(None) if kept.all() else kept
        block: Columns = {name: found.read(start, start + len(kept))[rows] for name, found in values.items()}
        yield assemble(schema, block, int(kept.sum()), label=True)


class GapCounter:
    """Counts the missing cells of the encoded rows that it watches."""

    def __init__(self, schema: Schema) -> None:
        self._schema, self._gaps = schema, np.zeros(len(schema.numeric_features), np.int64)
        self._unread = np.zeros(len(schema.category_columns), np.int64)

    def watch(self, blocks: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the blocks as they are."""
        for block in blocks:
            if len(self._gaps):
                self._gaps += np.isnan(block["numeric"]).sum(axis=0)
            if len(self._unread):
                self._unread += (block["category"] == 0).sum(axis=0)
            yield block

    def notes(self, unknown: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
        """Return a line that counts missing numbers and dates by column, and one of categories, each if there are any.

        `unknown` is what `unknown_counts` finds: such cells are no gaps, though they are encoded as those are.
        """
        names = [name.removesuffix(f".{DATETIME_PARTS[0]}") for name in self._schema.numeric_features]
        cyclic = set(self._schema.cyclic_features)
        counts = enumerate(zip(names, self._gaps.tolist(), strict=True))
        found = [f"{name} {count:,}" for i, (name, count) in counts if count and i not in cyclic]
        unread = zip((column.name for column in self._schema.category_columns), self._unread.tolist(), strict=True)
        gaps = [(name, count - unknown.get(name, (0, 0))[0]) for name, count in unread]
        words = ", ".join(f"{name} {count:,}" for name, count in gaps if count)
        return (
            *((f"missing numbers, filled and flagged by an indicator: {', '.join(found)}",) if found else ()),
            *((f"missing categories, known to the model as such: {words}",) if words else ()),
        )


def row_keys(columns: Mapping[str, Seen], groups: Sequence[Collection[str]], keep: np.ndarray) -> list[np.ndarray]:
    """Return, for each group of columns, `audit_rows.hash_cells` of the rows to `keep`, u64, from the hashes kept."""
    keys = [np.zeros(int(keep.sum()), np.uint64) for _ in groups]
    for name, seen in columns.items():
        if any(name in group for group in groups):
            hashes = seen.hashes().read()[keep].view(np.uint64)
            keys = [mix(found, hashes) if name in group else found for found, group in zip(keys, groups, strict=True)]
    return keys


def unknown_counts(schema: Schema, columns: Mapping[str, Seen], keep: np.ndarray) -> dict[str, tuple[int, int]]:
    """Return, by column, how many cells of the rows to `keep` hold an unknown category, and how many such there are."""
    found = {}
    for column in schema.category_columns:
        seen = columns[column.name]
        texts, codes = seen.vocabulary()
        unknown = (category_codes(column, texts) == 0) & ~missing_mask(texts.tolist(), seen.markers)
        if unknown.any():
            counts = np.bincount(codes.read()[keep], minlength=len(unknown))[unknown]
            if counts.any():
                found[column.name] = (int(counts.sum()), int((counts > 0).sum()))
    return found


def _parsed(schema: Schema, columns: Mapping[str, Seen]) -> dict[str, Values]:
    """Return the numbers, days and codes of every row, for `encode.assemble`."""
    values: dict[str, Values] = {}
    for column in schema.features:
        seen = columns[column.name]
        match column.kind:
            case "numeric":
                values[column.name] = seen.numbers()
            case "datetime":
                values[column.name] = seen.days(column.datetime_format)
            case _:
                values[column.name] = seen.looked_up(category_codes(column, seen.vocabulary().texts))
    target, weight = schema.target, schema.weight_column
    for name in target.columns:
        seen = columns[name]
        values[name] = (
            seen.looked_up(class_codes(target, name, seen.vocabulary().texts)) if target.classes else seen.numbers()
        )
    return values | ({weight: columns[weight].numbers()} if weight is not None else {})
