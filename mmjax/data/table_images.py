"""The images that columns of a table name: found, checked, decoded once, in memory or in the cache on disk."""

from typing import NamedTuple

import msgspec
import numpy as np

from mmjax.config import Config, TableImages
from mmjax.data.audit_rows import Rows, mix
from mmjax.data.cache import Tell
from mmjax.data.image_paths import READABLE, image_folder, image_paths, missing_note
from mmjax.data.pixels import Pixels
from mmjax.data.prepare_images import load_sources, spec_of
from mmjax.data.table_survey import Survey
from mmjax.data.validate import Fault, Validation, judge
from mmjax.schema import Columns, Schema


class RowImages(NamedTuple):
    """The images of the rows that are kept."""

    schema: Schema
    """With its ImageSpec."""
    validation: Validation
    """Rows with a cell that names no readable image are among those that are not kept, unless they stopped all."""
    paths: np.ndarray
    """object[N, I] of the kept rows; None where an image is missing."""
    pixels: Pixels
    streamed: bool
    notes: tuple[str, ...]

    def beside(self, rows: Rows) -> Rows:
        """Return the kept rows of columns with `image u8[N, I, H, W, 3]` and `image_present f32[N, I]`.

        Their keys then depend on the bytes of the images too, whatever the files are called.
        """
        present = np.array([[path is not None for path in row] for row in self.paths], np.float32)
        batch = rows.batch | {"image": self.pixels.images, "image_present": present.reshape(self.paths.shape)}
        return rows._replace(
            batch=batch,
            row_keys=self._keys(rows.row_keys),
            feature_keys=self._keys(rows.feature_keys),
            image_hashes=np.asarray(self.pixels.hashes),
        )

    def cells(self, rows: np.ndarray) -> Columns:
        """Return the paths in these of the kept rows, by column."""
        assert self.schema.image is not None
        return {name: self.paths[rows, i] for i, name in enumerate(self.schema.image.columns)}

    def _keys(self, keys: np.ndarray) -> np.ndarray:
        for content in np.asarray(self.pixels.contents).T:
            keys = mix(keys, content)
        return keys


def load_row_images(
    config: Config, settings: TableImages, schema: Schema, survey: Survey, validation: Validation, tell: Tell | None
) -> RowImages:
    """Return the images of the rows that `validation` keeps.

    DataError where a cell names none that can be read and the policy is `fail`, or no row is left.
    """
    table = survey.layout.path
    cells: Columns = {name: survey.columns[name].cells().read() for name in settings.columns}
    found = image_paths(cells, settings.columns, image_folder(settings, table), schema.missing_markers)
    validation = _without(config, schema, survey, validation, found.faults)
    rows = np.flatnonzero(validation.keep)
    sources = found.paths[rows]
    spec = spec_of(np.array([path for path in sources.ravel() if path is not None], object), settings.columns, settings)
    pixels, streamed, notes = load_sources(config, sources.ravel().tolist(), spec, table, tell)
    validation = _without(config, schema, survey, validation, _unreadable(cells, settings.columns, rows, pixels))
    schema = msgspec.structs.replace(schema, image=spec)
    notes = (*notes, *_gap_notes(found.paths[validation.keep], settings.columns))
    return RowImages(schema, validation, found.paths[validation.keep], pixels, streamed, notes)


def _without(config: Config, schema: Schema, survey: Survey, validation: Validation, faults: list[Fault]) -> Validation:
    """Return the Validation without rows that have one of these faults too; DataError under policy `fail`."""
    assert config.data.tabular is not None, "images of a table"
    faults = [fault for fault in (_of_kept(fault, validation.keep) for fault in faults) if len(fault.rows)]
    of_classes = faults and schema.target.task == "classification"
    targets = np.asarray(survey.columns[schema.target.column].cells().read()) if of_classes else None
    rows = np.flatnonzero(validation.keep)  # judged by themselves: whether a class is left depends on those before
    policy, path = config.data.tabular.on_invalid, survey.layout.path
    found = judge(faults, None if targets is None else targets[rows], schema, survey.lines[rows], path, policy)
    keep = np.zeros_like(validation.keep)
    keep[rows[found.keep]] = True
    broken = (violation._replace(row=int(rows[violation.row])) for violation in found.violations)
    violations = tuple(sorted((*validation.violations, *broken)))
    return Validation(keep, violations, (*validation.notes, *found.notes))


def _of_kept(fault: Fault, keep: np.ndarray) -> Fault:
    """Return the Fault in the rows that are kept, counted among these."""
    inside = keep[fault.rows]
    values = [value for value, kept in zip(fault.values, inside, strict=True) if kept]
    return fault._replace(rows=np.cumsum(keep)[fault.rows[inside]] - 1, values=values)


def _unreadable(cells: Columns, names: tuple[str, ...], rows: np.ndarray, pixels: Pixels) -> list[Fault]:
    """Return a Fault for each column and reason for which images of these rows could not be decoded."""
    found: dict[tuple[str, str], list[int]] = {}
    for index, reason in pixels.faults:
        found.setdefault((names[index % len(names)], reason), []).append(int(rows[index // len(names)]))
    return [
        Fault(np.array(at), name, [str(cells[name][row]) for row in at], READABLE.format(reason=reason), readable=False)
        for (name, reason), at in found.items()
    ]


def _gap_notes(paths: np.ndarray, names: tuple[str, ...]) -> tuple[str, ...]:
    counts = [sum(path is None for path in column) for column in paths.T]
    return missing_note("images", {name: count for name, count in zip(names, counts, strict=True) if count})
