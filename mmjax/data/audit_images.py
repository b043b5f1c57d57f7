"""Images that look alike: a perceptual hash proposes pairs, the pixels confirm them.

The hash has a bit for each of the 16 x 16 lowest frequencies of the grey image: is its wave clearly positive? (After
Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010, with 256 bits in place of 64: at 64,
pictures of like subjects collide by the thousand; and with a threshold in place of the median, which in smooth images
is noise.) A photograph of 64 px that was saved as a JPEG of quality 40, or at 0.7 of its size, changes up to 10 of its
bits; two different ones differ in 25 and more.
"""

import functools

import numpy as np

from mmjax.data.audit_copies import answer
from mmjax.data.audit_rows import (
    SHOWN,
    Rows,
    copies,
    counted,
    finding,
    kept_together,
    mix,
    noun,
    one_answer,
    parts_of,
    places,
)
from mmjax.data.prepared import Finding
from mmjax.data.split import PARTS
from mmjax.data.stream import gather

FREQUENCIES = 16
BANDS = 16
STRIDE = 37
"""Bit `37 i mod 256` is the i-th of the banded order, so that each band has low and high frequencies."""
LEAST_WAVE = 10.0
"""Coefficients up to here give no bit: noise and compression make them, and symmetric drawings have many of zero."""
NEAR_BITS = 16
"""Most different bits of images that look alike."""
NEAR_PIXELS = 0.98
"""Least correlation of their pixels, colours included: it tells drawings apart that differ in colour only."""
FLAT = 2.0
"""Standard deviation of pixels, in grey levels, up to which an image is one even colour."""
WINDOW = 256
"""In a band, each image is compared with so many at most that agree with it there."""
PARTNERS = 4
"""So many that may look like an image are looked at, at most: frames of a film would make millions of pairs."""
BLOCK_IMAGES = 1024
BLOCK_BYTES = 8 << 20
CACHED_BYTES = 1 << 19
"""Pixels that are compared at a time, so that they stay in the processor's cache."""


def perceptual_hashes(images: np.ndarray) -> np.ndarray:
    """Return u64[N, 4], the perceptual hashes of `images u8[N, H, W, 3]`, which may be mapped from disk."""
    _, height, width, _ = images.shape
    grey = np.array([[0.299], [0.587], [0.114]], np.float32)
    # One product does both. A small one for each image stays below what BLAS would share out to threads of its own.
    rows, columns = _cosines(height), np.kron(_cosines(width).T, grey)
    hashes = np.empty((len(images), FREQUENCIES**2 // 64), np.uint64)
    for start in range(0, len(images), BLOCK_IMAGES):
        block = np.asarray(images[start : start + BLOCK_IMAGES]).astype(np.float32)
        block = block.reshape(len(block), height, width * 3)
        above = (rows @ (block @ columns)).reshape(len(block), -1) > LEAST_WAVE
        above[:, 0] = False  # the mean brightness says nothing about shapes
        hashes[start : start + BLOCK_IMAGES] = np.packbits(above, axis=1).view(">u8")
    return hashes


def look_alike_findings(rows: Rows) -> list[Finding]:
    """Return images that look alike without being the same file, within and across splits, and with other labels."""
    if rows.image_hashes is None:
        return []
    pairs = _alike(rows, rows.image_hashes)
    parts = parts_of(rows)
    dealt = parts[pairs]
    same = dealt[:, 0] == dealt[:, 1]
    found, what = [], f"pairs of {noun(rows)}s that look alike"
    if same.any():
        listed = ", ".join(f"{n:,} {PARTS[i]}" for i in range(3) if (n := int((same & (dealt[:, 0] == i)).sum())))
        said = f"{what}, within a split: {same.sum():,} ({listed})"
        advice = "remove one of each pair unless both are wanted"
        found.append(finding("near_duplicates", said, int(same.sum()), _shown(rows, parts, pairs[same]), advice))
    if (~same).any():
        ends = np.sort(dealt[~same], axis=1)
        counts = [(a, b, int((ends == (a, b)).all(axis=1).sum())) for a, b in ((0, 1), (0, 2), (1, 2))]
        listed = ", ".join(f"{n:,} {PARTS[a]}-{PARTS[b]}" for a, b, n in counts if n)
        said = f"{what}, across splits: {(~same).sum():,} ({listed})"
        together = kept_together(rows, "number them in a column and keep them together")
        advice = f"scores on them are too good: remove them, or {together}"
        found.append(finding("near_duplicates", said, int((~same).sum()), _shown(rows, parts, pairs[~same]), advice))
    return found + _labelled_apart(rows, parts, pairs)


@functools.cache
def _cosines(size: int) -> np.ndarray:
    """Return f32[16, size], the rows of the lowest frequencies of the orthonormal DCT-II."""
    waves = np.cos(np.pi * (np.arange(size) + 0.5) * np.arange(FREQUENCIES)[:, None] / size)
    norms = np.linalg.norm(waves, axis=1, keepdims=True)
    return np.where(norms > 1e-6, waves / np.maximum(norms, 1e-6), 0.0).astype(np.float32)


def _shown(rows: Rows, parts: np.ndarray, pairs: np.ndarray) -> list[str]:
    return [places(rows, pair, parts) for pair in pairs[:SHOWN].tolist()]


def _labelled_apart(rows: Rows, parts: np.ndarray, pairs: np.ndarray) -> list[Finding]:
    if not rows.schema.target.classes or not len(pairs):
        return []
    label = rows.batch["label"]
    answers = one_answer(np.asarray(label[pairs.reshape(-1)])).reshape(-1, 2)
    apart = pairs[answers[:, 0] != answers[:, 1]]
    if not len(apart):
        return []
    examples = [
        f"{said} [{answer(rows, pair[0])} and {answer(rows, pair[1])}]"
        for pair, said in zip(apart.tolist(), _shown(rows, parts, apart), strict=False)
    ]
    what = f"look alike but with different labels: {counted(len(apart), 'pair')} of {noun(rows)}s"
    return [finding("conflicts", what, len(apart), examples, "look at them: one of the labels may be wrong")]


def _alike(rows: Rows, hashes: np.ndarray) -> np.ndarray:
    """Return i64[P, 2], ascending pairs of rows with an image that looks alike; those with equal keys left out."""
    images, count = rows.batch["image"], hashes.shape[1]
    pairs = near_pairs(hashes.reshape(-1, hashes.shape[2]))
    ends = pairs // count
    wanted = (ends[:, 0] != ends[:, 1]) & (rows.feature_keys[ends[:, 0]] != rows.feature_keys[ends[:, 1]])
    if "image_present" in rows.batch:
        present = rows.batch["image_present"]
        wanted &= (np.asarray(present[ends, pairs % count]) > 0).all(axis=1)
    pairs, kept = pairs[wanted], []
    size = max(1, BLOCK_BYTES // max(1, images[:1].nbytes))
    for start in range(0, len(pairs), size):
        block = pairs[start : start + size]
        ends = (gather({"image": images}, block[:, i] // count)["image"] for i in (0, 1))
        left, right = (found[np.arange(len(block)), block[:, i] % count] for i, found in enumerate(ends))
        kept.append(block[same_pixels(left, right)])
    return np.unique(np.sort(np.concatenate(kept) // count, axis=1), axis=0) if kept else pairs


def same_pixels(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return bool[P]: which pairs of images u8[P, H, W, 3] show the same but for brightness and contrast."""
    size = max(1, CACHED_BYTES // max(1, left[:1].nbytes))
    starts = range(0, len(left), size)
    found = [_same_pixels(left[start : start + size], right[start : start + size]) for start in starts]
    return np.concatenate(found) if found else np.zeros(0, bool)


def _same_pixels(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    left, right = left.reshape(len(left), -1), right.reshape(len(right), -1)
    near = (np.maximum(left, right) - np.minimum(left, right)).mean(axis=1) <= FLAT
    a, b = (pixels - pixels.mean(axis=1, dtype=np.float32, keepdims=True) for pixels in (left, right))
    squares_a, squares_b, product = (np.einsum("ij,ij->i", x, y) / a.shape[1] for x, y in ((a, a), (b, b), (a, b)))
    spread_a, spread_b = np.sqrt(squares_a), np.sqrt(squares_b)
    flat = np.minimum(spread_a, spread_b) <= FLAT
    return np.where(flat, near, product >= NEAR_PIXELS * spread_a * spread_b)


def near_pairs(hashes: np.ndarray) -> np.ndarray:
    """Return i64[P, 2], pairs of rows of `hashes u64[N, 4]` that differ in at most NEAR_BITS bits: PARTNERS of a row.

    Rows with one hash are chained to their neighbours, not all paired. Others are found where one of 16 bands of 16
    bits is equal: all that differ in 15 bits, and all but 1 in 1,000 of those that differ in 16.
    """
    keys = np.zeros(len(hashes), np.uint64)
    for word in hashes.T:
        keys = mix(keys, word)
    equal = copies(keys)
    joined = equal.group[1:] == equal.group[:-1]
    found = [np.stack([equal.rows[:-1][joined], equal.rows[1:][joined]], axis=1)]
    first = np.ones(len(hashes), bool)
    first[equal.rows[1:][joined]] = False
    rows = np.flatnonzero(first)
    unlike = hashes[rows]
    for band in _bands(unlike):
        found += [rows[pair] for pair in _close_in_band(unlike, band)]
    return _nearest(hashes, np.unique(np.concatenate(found), axis=0))


def _bands(hashes: np.ndarray) -> np.ndarray:
    """Return u16[16, N]: the bits of each hash, dealt to bands."""
    order = np.arange(FREQUENCIES**2) * STRIDE % FREQUENCIES**2
    spread = np.unpackbits(np.ascontiguousarray(hashes).astype(">u8").view(np.uint8), axis=1)[:, order]
    return np.ascontiguousarray(np.packbits(spread, axis=1)).view(">u2").astype(np.uint16).T


def _close_in_band(hashes: np.ndarray, band: np.ndarray) -> list[np.ndarray]:
    """Return i64[P, 2] arrays of pairs whose band is equal and whose hashes are near, PARTNERS of a row at most."""
    order = np.argsort(band, kind="stable")
    keys, found = band[order], []
    at, partners = np.arange(len(order)), np.zeros(len(order), np.int64)
    for step in range(1, min(WINDOW, len(order) - 1) + 1):
        at = at[at < len(order) - step]
        at = at[(keys[at + step] == keys[at]) & (partners[at] < PARTNERS)]
        if not len(at):
            break
        left, right = order[at], order[at + step]
        near = np.bitwise_count(hashes[left] ^ hashes[right]).sum(axis=1) <= NEAR_BITS
        partners[at] += near
        found.append(np.stack([left[near], right[near]], axis=1))
    return found


def _nearest(hashes: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return i64[Q, 2], of each first row the PARTNERS pairs with the fewest different bits, ascending."""
    distance = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]).sum(axis=1)
    pairs = pairs[np.lexsort((pairs[:, 1], distance, pairs[:, 0]))]
    rank = np.arange(len(pairs)) - np.searchsorted(pairs[:, 0], pairs[:, 0])
    pairs = pairs[rank < PARTNERS]
    return pairs[np.lexsort(pairs.T[::-1])]
