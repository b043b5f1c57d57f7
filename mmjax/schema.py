"""The Schema: what the columns are, in which order, and how their cells become numbers.

Made in two steps so that nothing of validation or test rows leaks into it: `infer_schema` (all rows) decides kinds,
classes and constraints; `fit_vocabulary` (training rows) adds vocabularies and offsets. Both live in `mmjax.data`.
It travels in every bundle as versioned JSON. `mmjax.data.encode.encode(schema, columns)` applies it.
"""

import re
from functools import cached_property
from typing import Any, Literal

import msgspec
import numpy as np

from mmjax.errors import BundleError

Columns = dict[str, np.ndarray]
"""Host arrays of equal length by column name, as read: text cells as `object` arrays of `str`, numbers as floats."""

Batch = dict[str, Any]
"""Arrays by field name with a leading batch axis: `numeric f32[B, F]` (NaN = missing), `category i32[B, C]`
(0 = missing or unknown), `dense f32[B, D]`, `codes f32[B, F, N]` (of `numeric`, by `piecewise_codes`),
`image u8[B, I, H, W, 3]` with `image_present f32[B, I]`, `columns_present f32[B]` (beside images, after a Transform:
0 where no cell of a row is known), `label i32[B]` (classes), `i32[B, L]` (1 where a label holds, else 0) or `f32[B, T]`
(less `Target.offset`),
`weight f32[B]`. An absent modality is an absent key."""

NAMES_IMAGES = "names images"
"""The reason of a column whose cells name image files: its kind is `ignored`, as they are no cells to learn from."""
FOLDERS_HOLD = "folders hold classes"
"""The reason of a target whose classes are the names of folders."""
TASK_IS_SET = "task is set in the config"
"""The reason of a target whose task the config names."""
Kind = Literal["numeric", "categorical", "boolean", "datetime", "identifier", "constant", "text", "ignored"]

Modality = Literal["table", "image", "multimodal"]

SCHEMA_FORMAT = 1
DATETIME_PARTS = ("elapsed_days", "time_of_day", "day_of_week", "day_of_year")


class Column(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One column of a table."""

    name: str
    kind: Kind
    vocabulary: tuple[str, ...] = ()
    """categorical and boolean: the known texts; the code of `vocabulary[i]` is `i + 1`, 0 is missing or unknown."""
    fixed_vocabulary: bool = False
    """True where a schema file's `enum` gave the vocabulary: another text is a violation, not merely unknown."""
    offset: float = 0.0
    """f64 subtracted on the host before rounding to f32; for datetime: days since 1970-01-01."""
    datetime_format: str = ""
    """datetime: `"iso"` for ISO 8601, else a `strptime` format."""
    integer: bool = False
    """True where a schema file's `type: integer` gave it: a number that is not whole is a violation."""
    minimum: float | None = None
    maximum: float | None = None
    pattern: str | None = None
    required: bool = False
    """True: a missing cell is a violation."""
    reason: str = ""
    """Why the column has this kind, in words for the user."""


class Label(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A column of a multilabel target: it holds for a row, or it does not."""

    column: str
    negative: str
    positive: str
    """The texts of its two values, as written in the data."""


TRUTHS = {"True": True, "TRUE": True, "true": True, "False": False, "FALSE": False, "false": False}
"""Texts that pandas reads as truth values."""
_WHOLE = re.compile("0|-?[1-9][0-9]{0,18}")
_DECIMAL = re.compile(r"-?(?=[0-9.]{1,16}$)(0|[1-9][0-9]*)(\.[0-9]+)?")
"""Of 15 digits or fewer: those of more pandas does not always round as others do, so that equal texts would differ."""
Values = tuple[str, ...] | tuple[int, ...] | tuple[float, ...] | tuple[bool, ...]
"""Classes as numbers, truth values or texts; see `class_values`."""


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is predicted."""

    column: str
    """multilabel: all columns in words, for messages; their names are `columns`."""
    task: Literal["classification", "regression", "multilabel"]
    classes: tuple[str, ...] = ()
    """classification: class texts; the label of `classes[i]` is `i`. Never sorted again. multilabel: the names of the
    labels, which are those of their columns."""
    labels: tuple[Label, ...] = ()
    """multilabel: each label, in the order of `classes`."""
    positive_class: str | None = None
    """binary: the class whose probability ROC-AUC, PR-AUC, precision, recall and F1 are about."""
    offset: float = 0.0
    """regression: f64 subtracted from labels on the host before rounding to f32, and added to every prediction."""
    reason: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that hold it: one, or that of each label."""
        return self.classes if self.labels else (self.column,)

    @property
    def values(self) -> Values:
        """The classes by `class_values`; names of folders stay texts."""
        named = self.labels or self.reason.startswith("folders")  # of older bundles: "folders and idx files ..."
        return self.classes if named else class_values(self.classes)

    def texts(self, column: str) -> tuple[str, ...]:
        """Return the texts that a column of it may hold, in the order of their codes; none for a number."""
        return next(((x.negative, x.positive) for x in self.labels if x.column == column), self.classes)


def class_values(classes: tuple[str, ...]) -> Values:
    """Return classes as whole or decimal numbers where all are written as such, as truth values where all are.

    Texts would equal none of a data frame's own numbers, without a word. Numbers are digits with at most a sign `-` and
    a point, at most 15 of them in decimals; pandas reads others too (leading zeros, `+1`, `1e3`, more digits), which
    stay texts, as do classes of which two are one number (`0`, `0.0`).

    >>> class_values(("0", "1")), class_values(("True", "False")), class_values(("01", "1"))
    ((0, 1), (True, False), ('01', '1'))
    >>> class_values(("0.0", "1.0")), class_values(("0.5", "2")), class_values(("0", "0.0"))
    ((0.0, 1.0), (0.5, 2.0), ('0', '0.0'))
    """
    if all(text in TRUTHS for text in classes) and len({TRUTHS[text] for text in classes}) == len(classes):
        return tuple(TRUTHS[text] for text in classes)
    if all(_WHOLE.fullmatch(text) and -(2**63) <= int(text) < 2**63 for text in classes):
        return tuple(map(int, classes))
    decimal = any("." in text for text in classes) and all(map(_DECIMAL.fullmatch, classes))
    if decimal and len(set(map(float, classes))) == len(classes):
        return tuple(map(float, classes))
    return classes


class ImageSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an image of any shape becomes `u8[height_px, width_px, 3]`."""

    columns: tuple[str, ...] = ("image",)
    height_px: int
    width_px: int
    resize: Literal["crop", "stretch", "pad"] = "crop"
    filter: Literal["bilinear", "bicubic", "lanczos", "box"] = "bilinear"
    crop_share: float | msgspec.UnsetType = msgspec.UNSET
    """crop: the share of the covered square that is kept, in the middle; UNSET, and not in the JSON: all of it."""


class Schema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """Kinds, vocabularies, missing markers, offsets, image size and filter, target and classes in order."""

    format: int = SCHEMA_FORMAT
    target: Target
    columns: tuple[Column, ...] = ()
    missing_markers: tuple[str, ...] = ()
    image: ImageSpec | None = None
    id_column: str | None = None
    weight_column: str | None = None

    def of_kind(self, *kinds: Kind) -> tuple[Column, ...]:
        """Return the columns of these kinds, in the order of the table."""
        if len(kinds) == 1:
            return self._by_kind.get(kinds[0], ())
        return tuple(column for column in self.columns if column.kind in kinds)

    @cached_property
    def _by_kind(self) -> dict[Kind, tuple[Column, ...]]:
        kinds: dict[Kind, None] = dict.fromkeys(column.kind for column in self.columns)
        return {kind: tuple(column for column in self.columns if column.kind == kind) for kind in kinds}

    @cached_property
    def features(self) -> tuple[Column, ...]:
        """The columns a model sees, in the order of the table."""
        return self.of_kind("numeric", "categorical", "boolean", "datetime")

    @cached_property
    def modality(self) -> Modality:
        """What a row is: cells, one image, or several images or images beside cells."""
        if self.image is None:
            return "table"
        return "image" if len(self.image.columns) == 1 and not self.features else "multimodal"

    def rows_of_images(self, images: int) -> int:
        """Return how many rows have about so many images: a power of two where `images` is one, at least 1."""
        each = len(self.image.columns) if self.image else 1
        return max(1, images >> (each - 1).bit_length())

    @cached_property
    def feature_offsets(self) -> np.ndarray | None:
        """What each feature column loses before it is rounded to f32, f64[features]; None where none loses anything."""
        offsets = np.array([column.offset for column in self.features])
        return offsets if offsets.any() else None

    @cached_property
    def numeric_features(self) -> tuple[str, ...]:
        """Names along the F axis of `Batch["numeric"]`: numeric columns, then four parts of each datetime column."""
        parts = (f"{c.name}.{part}" for c in self.of_kind("datetime") for part in DATETIME_PARTS)
        return tuple(c.name for c in self.of_kind("numeric")) + tuple(parts)

    @cached_property
    def cyclic_features(self) -> tuple[int, ...]:
        """Indices into `numeric_features` of the datetime parts that are fractions of a cycle, in [0, 1)."""
        cyclic = tuple(f".{part}" for part in DATETIME_PARTS[1:])
        first = len(self.of_kind("numeric"))
        return tuple(i for i, name in enumerate(self.numeric_features) if i >= first and name.endswith(cyclic))

    @cached_property
    def category_columns(self) -> tuple[Column, ...]:
        """The columns along the C axis of `Batch["category"]`."""
        return self.of_kind("categorical", "boolean")

    @cached_property
    def cardinalities(self) -> tuple[int, ...]:
        """Codes per category column, the slot 0 for missing or unknown included."""
        return tuple(len(column.vocabulary) + 1 for column in self.category_columns)

    def column(self, name: str) -> Column:
        """Return the column of that name; KeyError when there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)

    @cached_property
    def positive_index(self) -> int:
        """Index of the positive class: the named one, else the second in order."""
        named = self.target.positive_class
        return self.target.classes.index(named) if named is not None else min(1, len(self.target.classes) - 1)


def schema_to_json(schema: Schema) -> bytes:
    """Return the Schema as indented JSON (UTF-8), keys in a fixed order."""
    return msgspec.json.format(msgspec.json.encode(schema), indent=2) + b"\n"


def schema_from_json(data: bytes, where: str) -> Schema:
    """Return the Schema in `data`; BundleError naming `where` when it is damaged or of a newer format."""
    try:
        found = msgspec.json.decode(data)
        version = found.get("format") if isinstance(found, dict) else None
        if isinstance(version, int) and version > SCHEMA_FORMAT:
            raise BundleError(
                f"{where}: schema format {version} is newer than {SCHEMA_FORMAT}, the newest known here; update mmjax"
            )
        return msgspec.convert(found, Schema)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise BundleError(f"{where}: not a schema: {error}") from error
