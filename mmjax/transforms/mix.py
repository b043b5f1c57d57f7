"""Augments that mix each image, and its answer, with another of the batch: mixup and cutmix.

A row's partner is the row before it; as rows are shuffled in each epoch, that is anyone. `label` and `weight` keep
their meaning, so that who ignores mixing still reads the truth:

- classes: `label i32[B]` is the one with the larger part in the image; `mixed_label i32[B]` is the other, with the part
  `mixed_share f32[B]`, 0 to one half, by which the loss weighs it (`training.steps`);
- numbers: `label f32[B, T]` is the mean of both by their parts;
- `weight f32[B]` is the mean of both weights by their parts, and parts of answers count by it: a row of weight 0 gives
  its partner nothing to learn but pixels.
"""

import jax
import jax.numpy as jnp

from mmjax.schema import Batch
from mmjax.transforms.augment import Augment
from mmjax.transforms.boxes import Boxes, inside

TRIES = 24
"""Of Jöhnk's method."""


def mix(*, mixup: float = 0.0, cutmix: float = 0.0, probability: float = 1.0) -> Augment:
    """Return the Augment that mixes each row with another with this probability; both alphas 0: with none.

    `mixup`: every pixel is the mean of both, the other's part drawn from Beta(alpha, alpha) (Zhang et al. 2017, arXiv
    1710.09412). `cutmix`: a box of the image shows the other one, its area drawn in the same way, its middle anywhere
    (Yun et al. 2019, arXiv 1905.04899); the part is what is seen of the box. With both, each row takes either one.
    A row of whose images one is absent is not mixed.
    """

    def apply(key: jax.Array, batch: Batch) -> Batch:
        if "image" not in batch or not (mixup or cutmix) or probability <= 0:
            return batch
        image = jnp.asarray(batch["image"], jnp.float32)
        size = image.shape[2], image.shape[3]
        key_mixed, key_which, key_part, key_box = jax.random.split(key, 4)
        rows = image.shape[0]
        cuts = jax.random.bernoulli(key_which, 0.5 if mixup and cutmix else float(cutmix > 0), (rows,))
        part = jnp.where(cuts, _part(key_part, cutmix, rows), _part(key_part, mixup, rows))
        mixed = jax.random.bernoulli(key_mixed, probability, (rows,)) & _present(batch)
        box = inside(cut_boxes(key_box, part, size), *size)
        part = jnp.where(mixed, jnp.where(cuts, box.mean((1, 2, 3, 4)), part), 0.0)
        shown = jnp.where(_beside(cuts), box & _beside(mixed), _beside(part))
        image = image + shown * (jnp.roll(image, 1, axis=0) - image)
        return {**batch, "image": image} | (mixed_answers(batch, part) if "label" in batch else {})

    return apply


def mixed_answers(batch: Batch, part: jax.Array) -> Batch:
    """Return `label`, `weight` and (of classes and labels) `mixed_label`, `mixed_share` of rows mixed by `part f32[B]`.

    Labels i32[B, L] go as classes do, each row's together.
    """
    label = jnp.asarray(batch["label"])
    weight = jnp.asarray(batch["weight"]) if "weight" in batch else jnp.ones(part.shape, jnp.float32)
    other, others_weight = jnp.roll(label, 1, axis=0), jnp.roll(weight, 1) * part
    whole = weight * (1 - part) + others_weight
    share = jnp.where(whole > 0, others_weight / jnp.where(whole > 0, whole, 1.0), 0.0)
    if not jnp.issubdtype(label.dtype, jnp.integer):
        columns = share.reshape(-1, *(1,) * (label.ndim - 1))
        both = (1 - columns) * label + columns * other
        # Not the sum where a part is 0: the label of a row that weighs nothing may be NaN.
        return {"label": jnp.where(columns == 0, label, jnp.where(columns == 1, other, both)), "weight": whole}
    swapped = (share > 0.5).reshape(-1, *(1,) * (label.ndim - 1))
    return {
        "label": jnp.where(swapped, other, label),
        "mixed_label": jnp.where(swapped, label, other),
        "mixed_share": jnp.minimum(share, 1 - share),
        "weight": whole,
    }


def cut_boxes(key: jax.Array, part: jax.Array, size: tuple[int, int]) -> Boxes:
    """Return boxes [B, 1] of about `part f32[B]` of an image of `size`, their middle anywhere; what is outside is cut.

    As torchvision's `CutMix`: half a side is a whole number of pixels.
    """
    top, left, bottom, right = [], [], [], []
    half = 0.5 * jnp.sqrt(part)
    for own, side, low, high in zip(jax.random.split(key), size, (top, left), (bottom, right), strict=True):
        reach = (half * side).astype(jnp.int32)
        middle = jax.random.randint(own, part.shape, 0, side)
        low.append(jnp.maximum(middle - reach, 0)[:, None])
        high.append(jnp.minimum(middle + reach, side)[:, None])
    return Boxes(top[0], left[0], bottom[0] - top[0], right[0] - left[0], (part > 0)[:, None])


def _part(key: jax.Array, alpha: float, rows: int) -> jax.Array:
    """Return f32[B] from Beta(alpha, alpha); 0 for alpha 0."""
    if alpha == 0:
        return jnp.zeros(rows, jnp.float32)
    if alpha > 1:
        return jax.random.beta(key, alpha, alpha, (rows,))
    # Jöhnk 1964: of x = u**(1/a), y = v**(1/a) with x + y <= 1, x / (x + y). At worst every second try is right. JAX's
    # own takes 6 s to compile.
    logs = jnp.log(jax.random.uniform(key, (2, TRIES, rows), minval=jnp.finfo(jnp.float32).tiny)) / alpha
    first = (jnp.logaddexp(*logs) <= 0).argmax(axis=0)[None]
    x, y = (jnp.take_along_axis(each, first, axis=0)[0] for each in logs)
    return jnp.exp(x - jnp.logaddexp(x, y))


def _present(batch: Batch) -> jax.Array:
    """Return bool[B]: all images of the row and of its partner are there."""
    if "image_present" not in batch:
        return jnp.ones(len(batch["image"]), bool)
    present = (jnp.asarray(batch["image_present"]) > 0).all(axis=1)
    return present & jnp.roll(present, 1)


def _beside(values: jax.Array) -> jax.Array:
    """Return `[B]` as `[B, 1, 1, 1, 1]`, to stand beside images."""
    return values[:, None, None, None, None]
