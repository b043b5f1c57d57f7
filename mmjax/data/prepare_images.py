"""Images on disk become Prepared: listed, checked, dealt, decoded to one size."""

from pathlib import Path

import msgspec
import numpy as np

from mmjax.config import Config, ImageData, Inference
from mmjax.data.decode import probe_image
from mmjax.data.encode import encode
from mmjax.data.fingerprint import fingerprint
from mmjax.data.images import ImageSource, apply_policy, read_images, scan_images, take
from mmjax.data.infer import fit_vocabulary, infer_target
from mmjax.data.prepared import Prepared, Quarantined, deal, golden_rows
from mmjax.data.quarantine import find_unanswered, quarantine_images
from mmjax.errors import DataError
from mmjax.schema import ImageSpec, Schema, Target

LARGEST_DEFAULT_PX = 64
"""Images larger than this are brought to it unless the config asks for more: two cores train it in minutes."""


def prepare_images(config: Config, data: ImageData) -> Prepared:
    """Return the Prepared rows of images. Raises DataError for anything wrong with them."""
    by_column = config.split.column
    source = read_images(data, keep=(by_column,) if by_column else ())
    source, unanswered, quarantined = answered_images(source, data)
    images = source.columns[source.image_column]
    bad = scan_images(images.tolist())
    quarantined += quarantine_images(source.names, images, source.image_column, bad)
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
    split = deal(config, schema, source.columns, len(source.names), assigned, data, source.names)
    schema = fit_vocabulary(schema, {name: cells[split.train] for name, cells in source.columns.items()})
    batch = encode(schema, source.columns, label=True)
    image = schema.image
    assert image is not None, "made above"
    rows = golden_rows(split, config.golden_rows)
    golden = {name: source.columns[name][rows] for name in image.columns}
    found = fingerprint(schema, split, batch, golden)
    notes = (*source.notes, *unanswered, *notes, *split.notes)
    return Prepared(schema, source.names, split, batch, golden, notes, quarantined, fingerprint=found)


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
    folders = data.task is msgspec.UNSET and Path(data.path).is_dir()
    target = infer_target(
        source.columns[source.target_column],
        source.target_column,
        task="classification" if folders else data.task,
        positive_class=data.positive_class,
        inference=inference,
    )
    return msgspec.structs.replace(target, reason="folders and idx files hold classes") if folders else target


def image_spec(source: ImageSource, data: ImageData) -> ImageSpec:
    """Return how images are brought to one size: as the config says, or `default_image_size`."""
    size = default_image_size(source) if data.image_size is msgspec.UNSET else data.image_size
    return ImageSpec(
        columns=(source.image_column,), height_px=size[0], width_px=size[1], resize=data.resize, filter=data.filter
    )


def default_image_size(source: ImageSource) -> tuple[int, int]:
    """Return [height, width]: the images' own size when they all share one, else a square of their median side.

    At most LARGEST_DEFAULT_PX, at least 8.
    """
    infos = [probe_image(cell) for cell in source.columns[source.image_column][:: max(1, len(source.names) // 200)]]
    sizes = {(info.height_px, info.width_px) for info in infos}
    side = int(np.median([min(size) for size in sizes]))
    height, width = sizes.pop() if len(sizes) == 1 else (side, side)
    return (min(max(height, 8), LARGEST_DEFAULT_PX), min(max(width, 8), LARGEST_DEFAULT_PX))
