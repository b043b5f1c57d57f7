"""A sheet of images with captions, to look at what a model will see."""

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmjax.errors import DataError


def contact_sheet(
    path: str | os.PathLike[str], images: np.ndarray, captions: Sequence[str], *, columns: int = 8
) -> None:
    """Write a PNG that shows `images u8[N, H, W, 3]` in rows of `columns`, each above its caption.

    Images under 96 px wide are enlarged by a whole factor; captions too long for their place are cut. DataError
    when the file cannot be written.
    """
    count, height_px, width_px, _ = images.shape
    factor = max(1, -(-96 // max(1, width_px)))
    cell_w, cell_h = width_px * factor + 8, height_px * factor + 24
    columns = max(1, min(columns, count))
    sheet = Image.new("RGB", (columns * cell_w, max(1, -(-count // columns)) * cell_h), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = index % columns * cell_w + 4, index // columns * cell_h + 4
        tile = Image.fromarray(image).resize((width_px * factor, height_px * factor), Image.Resampling.NEAREST)
        sheet.paste(tile, (left, top))
        draw.text((left, top + tile.height + 2), _cut(caption, font, tile.width), fill="black", font=font)
    try:
        sheet.save(path, "PNG")
    except OSError as error:
        raise DataError(f"{os.fspath(path)}: cannot be written: {error.strerror or error}") from error


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> str:
    """Return the first line of `text`, shortened with an ellipsis until it is at most `width_px` wide."""
    line = text.splitlines()[0] if text.strip() else ""
    if font.getlength(line) <= width_px:
        return line
    return next((s for n in range(len(line), 0, -1) if font.getlength(s := line[:n] + "...") <= width_px), "")
