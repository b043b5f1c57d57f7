"""Images and columns in one network: a trunk for each, joined late; either may be missing from a row.

Both trunks are Models of their own, which answer with `width` values a row instead of the target. Late fusion with
replaced modalities after Neverova et al. 2015 (ModDrop, arXiv 1501.00102); the gate after Arevalo et al. 2017
(arXiv 1702.01992); attention over a row's images after Ilse et al. 2018 (arXiv 1802.04712, eq. 8); heads of the trunks
so that the one that learns faster does not keep the other from learning, after Wang et al. 2020 (arXiv 1905.12681).
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.errors import DataError
from mmjax.models.base import Model, Variables
from mmjax.models.layers import Dropout, he_normal, row_mask
from mmjax.schema import Batch

TRUNKS = ("images", "columns")


class Join(nn.Module):
    """What both trunks tell of a row becomes its outputs.

    Each image gets a factor and an offset of its column, so that one trunk serves several; those that are there are
    pooled. Where all images, or all cells, of a row are missing, a learnt vector stands for them. Both halves are
    standardised (layer norm), then `concatenate`: side by side, dense, activation; or `gated`: `g a + (1 - g) b` with
    `g` a sigmoid of both. Then dropout and the head.

    `own_heads`: trunks with a head of their own beside it. Each head has a loss of its own in training, which is their
    mean; answered is the mean of their outputs. Where a trunk has nothing to look at, or what it sees is hidden, the
    join answers for it, and counts once more.
    """

    outputs: int
    width: int
    join: Literal["concatenate", "gated"]
    pooling: Literal["mean", "attention"]
    dropout: float
    modality_dropout: float
    own_heads: tuple[Literal["columns", "images"], ...] = ()

    @nn.compact
    def __call__(
        self,
        seen: jax.Array,
        image_present: jax.Array,
        told: jax.Array | None,
        columns_present: jax.Array | None,
        *,
        train: bool = False,
    ) -> jax.Array:
        """Return `[B, outputs]` for `seen f32[B, I, D]` of I images and `told f32[B, D]` of the columns, or None.

        In training with `own_heads` it is `[B, 1 + heads, outputs]`, the join's first.
        """
        has_image = (image_present > 0).any(axis=1)
        seen = self._pooled(seen, image_present)
        if told is None or columns_present is None:
            return self._joint([self._half("images", seen, has_image)], train=train)
        has_columns = columns_present > 0
        if train and self.modality_dropout > 0.0:
            has_image, has_columns = self._hidden(has_image, has_columns)
        halves = [self._half("images", seen, has_image), self._half("columns", told, has_columns)]
        joint = self._joint(halves, train=train)
        trunks = {"images": (seen, has_image), "columns": (told, has_columns)}
        each = [joint]
        for name in self.own_heads:
            values, present = trunks[name]
            each.append(jnp.where(present[:, None], self._dense(f"{name}_head", self.outputs)(values), joint))
        return jnp.stack(each, axis=1) if train and self.own_heads else sum(each[1:], joint) / len(each)

    def _pooled(self, seen: jax.Array, present: jax.Array) -> jax.Array:
        """`f32[B, I, D] -> f32[B, D]`, over the images that are present."""
        shape = (seen.shape[1], seen.shape[2])
        gain = self.param("gain", nn.initializers.ones, shape, jnp.float32)
        offset = self.param("offset", nn.initializers.zeros, shape, jnp.float32)
        seen = nn.silu(seen * gain[None] + offset[None])
        if self.pooling == "attention":
            scores = self._dense("attention_score", 1)(nn.tanh(self._dense("attention", self.width)(seen)))[..., 0]
            scores = jnp.where(present > 0, scores.astype(jnp.float32), -jnp.inf)
            shares = jnp.where(present > 0, jnp.exp(scores - _largest(scores)), 0.0)
        else:
            shares = (present > 0).astype(jnp.float32)
        shares = shares / jnp.maximum(shares.sum(axis=1, keepdims=True), 1e-9)
        return (seen * shares[..., None]).sum(axis=1)

    def _half(self, name: str, values: jax.Array, present: jax.Array) -> jax.Array:
        missing = self.param(f"{name}_missing", nn.initializers.zeros, (self.width,), jnp.float32)
        known = nn.LayerNorm(name=f"{name}_norm")(values)
        return jnp.where(present[:, None], known, missing[None])

    def _hidden(self, has_image: jax.Array, has_columns: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return what is left of both once either was hidden from some rows, never both."""
        drawn = jax.random.uniform(self.make_rng("dropout"), has_image.shape)
        both, rate = has_image & has_columns, self.modality_dropout
        return has_image & ~(both & (drawn < rate / 2)), has_columns & ~(both & (drawn >= 1 - rate / 2))

    def _joint(self, halves: list[jax.Array], *, train: bool) -> jax.Array:
        x = Dropout(self.dropout, name="dropout")(self._joined(halves), train=train)
        return self._dense("head", self.outputs)(x)

    def _joined(self, halves: list[jax.Array]) -> jax.Array:
        beside = jnp.concatenate([nn.silu(half) for half in halves], axis=-1)
        if self.join == "concatenate" or len(halves) == 1:
            return nn.silu(self._dense("joined", self.width)(beside))
        share = nn.sigmoid(self._dense("gate", self.width)(beside))
        return share * nn.silu(halves[0]) + (1 - share) * nn.silu(halves[1])

    def _dense(self, name: str, units: int) -> nn.Dense:
        return nn.Dense(units, kernel_init=he_normal, name=name)


def _largest(scores: jax.Array) -> jax.Array:
    """Return the largest score of each row, `f32[B, 1]`; 0 where there is none."""
    largest = scores.max(axis=1, keepdims=True)
    return jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0.0))


def make_fusion(images: Model, columns: Model | None, join: Join) -> Model:
    """Return the Model of both trunks, whose outputs are `join.width` values a row, and of their join.

    `images` sees all images of a batch as rows of their own; those that are missing do not count in its statistics.
    Parameters are `{"images": ..., "columns": ..., "join": ...}`. Without `columns` the images answer alone.
    """
    trunks = {"images": images} | ({"columns": columns} if columns else {})

    def init(key: jax.Array, batch: Batch) -> Variables:
        keys = jax.random.split(key, len(TRUNKS) + 1)
        found = {name: trunk.init(keys[TRUNKS.index(name)], _of(name, batch)) for name, trunk in trunks.items()}
        said = {name: trunk.apply(found[name], _of(name, batch), train=False)[0] for name, trunk in trunks.items()}
        own = join.init(keys[-1], *_inputs(said, batch), train=False)
        return {
            "params": {name: variables["params"] for name, variables in found.items()} | {"join": own["params"]},
            "batch_stats": {name: variables["batch_stats"] for name, variables in found.items()},
        }

    def apply(
        variables: Variables,
        batch: Batch,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        progress: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        if train and key is None:
            raise ValueError("Model.apply: expected a key, for dropout in training, got None; pass key=")
        said, stats = {}, {}
        for number, (name, trunk) in enumerate(trunks.items()):
            own = {part: variables[part][name] for part in ("params", "batch_stats")}
            drawn = jax.random.fold_in(key, number) if train and key is not None else None
            said[name], stats[name] = trunk.apply(own, _of(name, batch), train=train, key=drawn, progress=progress)
        rngs = {"dropout": jax.random.fold_in(key, len(TRUNKS))} if train and key is not None else {}
        parameters = {"params": variables["params"]["join"]}
        outputs: Any = join.apply(parameters, *_inputs(said, batch), train=train, rngs=rngs)
        return outputs.astype(jnp.float32), stats

    return Model(init, apply)


def images_trunk(variables: Variables) -> Variables:
    """Return those of a network's variables (or of its parameters, their shapes ...) that look at images: the trunk of
    the images where columns are joined with them, all of an image network.
    """
    return {part: tree["images"] if "join" in variables["params"] else tree for part, tree in variables.items()}


def with_images_trunk(variables: Variables, trunk: Variables) -> Variables:
    """Return the variables with others in the place of those that `images_trunk` returns."""
    if "join" not in variables["params"]:
        return trunk
    return {part: {**tree, "images": trunk[part]} for part, tree in variables.items()}


def _of(name: str, batch: Batch) -> Batch:
    """Return what one trunk sees of a batch: the columns, or each image as a row that counts where it is there."""
    if name == "columns":
        return {field: values for field, values in batch.items() if not field.startswith("image")}
    if "image" not in batch:
        raise DataError(f"multimodal: expected image in the batch, got {sorted(batch) or 'nothing'}")
    image, counted = batch["image"], batch["image_present"] > 0
    if (mask := row_mask(batch)) is not None:
        counted &= mask[:, None]
    return {"image": image.reshape(-1, 1, *image.shape[2:]), "weight": counted.astype(jnp.float32).reshape(-1)}


def _inputs(said: dict[str, jax.Array], batch: Batch) -> tuple[jax.Array | None, ...]:
    """Return the arrays that a Join takes."""
    present = batch["image_present"]
    seen = said["images"].reshape(*present.shape, -1)
    return seen, present, said.get("columns"), batch.get("columns_present")
