"""Images on disk become Prepared: listed, decoded once to one size, checked, dealt, looked at.

The pixels lie in memory (resident) or in the cache on disk (streamed). Nothing else differs: both give the same bits.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from mmjax.config import Config, ImageData, Inference, TableImages
from mmjax.data.audit import audit
from mmjax.data.audit_rows import Rows
from mmjax.data.cache import NoCacheFolder, Tell
from mmjax.data.decode import ImageInfo, probe_image
from mmjax.data.encode import encode
from mmjax.data.fingerprint import fingerprint
from mmjax.data.idx import find_idx
from mmjax.data.images import ImageSource, apply_policy, read_images, take
from mmjax.data.infer import fit_vocabulary
from mmjax.data.loading import choose_loading
from mmjax.data.pixels import Pixels, Source, decode_resident, decode_streamed, encoded_bytes, key_of_sources
from mmjax.data.prepared import Prepared, Quarantined, audited_by, deal, golden_rows
from mmjax.data.quarantine import find_unanswered, quarantine_images
from mmjax.data.split import Split
from mmjax.data.target import infer_labels_of, infer_target
from mmjax.errors import DataError
from mmjax.schema import FOLDERS_HOLD, Batch, Columns, ImageSpec, Schema, Target

LARGEST_DEFAULT_PX = 64
"""Images larger than this are brought to it unless the config asks for more: two cores train it in minutes."""
PROBED = 200
"""About so many headers are read to choose a size."""


def prepare_images(config: Config, data: ImageData, tell: Tell | None = None) -> Prepared:
    """Return the Prepared rows of images, in memory or streamed. Raises DataError for anything wrong with them.

    `tell` hears how far decoding is, and of waiting for another process that decodes the same images.
    """
    by_column = config.split.column
    refuse_idle_keys(config, data)
    source = read_images(data, keep=(by_column,) if by_column else ())
    source, unanswered, quarantined = answered_images(source, data)
    image_target(source, data)  # what is wrong with the answers is told before all is decoded, which may take long
    spec = image_spec(source, data)
    pixels, streamed, loading = load_pixels(config, source, spec, data.path, tell)
    quarantined += quarantine_images(
        source.names, source.columns[source.image_column], source.image_column, pixels.faults
    )
    source, _, dropped = apply_policy(source, pixels.faults, data.on_invalid)
    schema = Schema(
        target=image_target(source, data), image=spec, id_column=data.id_column, weight_column=data.weight_column
    )
    assigned = source.columns[by_column] if by_column else source.assigned
    split = deal(config, schema, source.columns, len(source.names), assigned, data, source.names)
    schema = fit_vocabulary(schema, {name: cells[split.train] for name, cells in source.columns.items()})
    batch = image_batch(schema, source.columns, pixels)
    golden = {name: source.columns[name][golden_rows(split, config.golden_rows)] for name in spec.columns}
    return Prepared(
        schema,
        source.names,
        split,
        batch,
        golden,
        (*source.notes, *unanswered, *dropped, *split.notes, *loading),
        quarantined,
        audit(_audited(config, schema, source, split, batch, pixels), config.audit),
        streamed,
        fingerprint(schema, split, batch, golden, pixels.digests),
    )


def refuse_idle_keys(config: Config, data: ImageData) -> None:
    """Raise DataError for every key that would do nothing, as only a CSV of images has columns."""
    if not Path(data.path).is_dir():
        return
    keys = {
        "split.column": config.split.column,
        "data.image.id_column": data.id_column,
        "data.image.weight_column": data.weight_column,
        "data.image.ignore_columns": ", ".join(data.ignore_columns),
    }
    problems = [
        f"{key}: expected with a CSV of images only, got '{value}' and {data.path}; remove it"
        for key, value in keys.items()
        if value
    ]
    if problems:
        raise DataError(problems)


def load_pixels(
    config: Config, source: ImageSource, spec: ImageSpec, path: str, tell: Tell | None
) -> tuple[Pixels, bool, tuple[str, ...]]:
    """Return (all images decoded, whether they are mapped from the cache, notes that say so and where)."""
    return load_sources(config, source.columns[source.image_column].tolist(), spec, path, tell)


def load_sources(
    config: Config, images: Sequence[Source], spec: ImageSpec, path: str, tell: Tell | None
) -> tuple[Pixels, bool, tuple[str, ...]]:
    """Return what `load_pixels` does for images that are read from these sources, those of a row side by side."""
    streamed, note = choose_loading(config.data.loading, len(images) * encoded_bytes(spec))
    if streamed:
        try:
            key = key_of_sources(path, images)
            pixels = decode_streamed(spec, images, key, config.data.cache, tell)
            return pixels, True, (note, *pixels.notes)
        except NoCacheFolder as error:
            if config.data.loading == "streamed":
                raise
            note = f"loading: resident, as there is no cache: {error}"
    return decode_resident(spec, images, tell), False, (note,) if note else ()


def image_batch(schema: Schema, columns: Columns, pixels: Pixels) -> Batch:
    """Return the Batch of decoded images with their answers and weights."""
    present = np.ones(pixels.images.shape[:2], np.float32)
    answers = encode(msgspec.structs.replace(schema, image=None), columns, label=True)
    return {"image": pixels.images, "image_present": present} | answers


def _audited(config: Config, schema: Schema, source: ImageSource, split: Split, batch: Batch, pixels: Pixels) -> Rows:
    """Return what the audit reads: copies are files of the same bytes, whatever their size once decoded."""
    by_column = config.split.column
    groups, ordered_by = audited_by(config, source.columns[by_column] if by_column else None)
    return Rows(
        schema,
        batch,
        split,
        source.names,
        row_keys=np.asarray(pixels.contents[:, 0]),
        feature_keys=np.asarray(pixels.contents[:, 0]),
        image_hashes=np.asarray(pixels.hashes),
        groups=groups,
        ordered_by=ordered_by,
        has_columns=source.lines is not None,
    )


def answered_images(
    source: ImageSource, data: ImageData
) -> tuple[ImageSource, tuple[str, ...], tuple[Quarantined, ...]]:
    """Return (the images with an answer and a weight, notes, the others); all under policy `fail`, and of folders."""
    if data.on_invalid == "fail" or Path(data.path).is_dir():
        return source, (), ()
    number = data.task == "regression"
    found = find_unanswered(source.columns, source.names, data.path, data, number=number)
    if found.keep.all() or not found.keep.any():
        return source, (), ()
    return take(source, found.keep), found.notes, found.quarantined


def image_target(source: ImageSource, data: ImageData, inference: Inference = Inference()) -> Target:
    """Return the target: folders hold classes, whatever their names; that of a CSV is judged by its values."""
    folders = Path(data.path).is_dir()
    if isinstance(source.target_column, tuple):
        return infer_labels_of(source.columns, source.target_column, positive_class=data.positive_class)
    target = infer_target(
        source.columns[source.target_column],
        source.target_column,
        task="classification" if folders and data.task is msgspec.UNSET else data.task,
        positive_class=data.positive_class,
        inference=inference,
    )
    if not folders or target.task != "classification":
        return target
    return msgspec.structs.replace(target, reason="idx files hold classes" if find_idx(data.path) else FOLDERS_HOLD)


def image_spec(source: ImageSource, data: ImageData) -> ImageSpec:
    """Return how images are brought to one size: as the config says, or `default_image_size`."""
    return spec_of(source.columns[source.image_column], (source.image_column,), data)


def spec_of(images: np.ndarray, columns: tuple[str, ...], settings: ImageData | TableImages) -> ImageSpec:
    """Return how these images, object[N], are brought to one size: as the settings say, or `default_image_size`."""
    size = default_image_size(images) if settings.image_size is msgspec.UNSET else settings.image_size
    return ImageSpec(
        columns=columns,
        height_px=size[0],
        width_px=size[1],
        resize=settings.resize,
        filter="bilinear" if settings.filter is msgspec.UNSET else settings.filter,
        crop_share=msgspec.UNSET if settings.crop_share in (None, 1.0) else settings.crop_share,
    )


def default_image_size(images: np.ndarray) -> tuple[int, int]:
    """Return [height, width]: the images' own size when they all share one, else a square of their median side.

    At most LARGEST_DEFAULT_PX, at least 8. Files that are no image say nothing.
    """
    infos = _probe(images[:: max(1, len(images) // PROBED)]) or _probe(images)
    if not infos:
        return LARGEST_DEFAULT_PX, LARGEST_DEFAULT_PX
    sizes = {(info.height_px, info.width_px) for info in infos}
    side = int(np.median([min(size) for size in sizes]))
    height, width = sizes.pop() if len(sizes) == 1 else (side, side)
    return (min(max(height, 8), LARGEST_DEFAULT_PX), min(max(width, 8), LARGEST_DEFAULT_PX))


def _probe(images: np.ndarray) -> list[ImageInfo]:
    """Return what the headers say of those that have one."""
    found = []
    for image in images:
        with contextlib.suppress(DataError):
            found.append(probe_image(image))
    return found
