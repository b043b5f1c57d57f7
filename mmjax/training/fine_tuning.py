"""How fast each part of a pretrained network learns: frozen parts not at all, early ones slower than late ones."""

import re
from typing import Any

import jax
from msgspec import UNSET

from mmjax.config import Training
from mmjax.models.base import Rates
from mmjax.models.fusion import images_trunk, with_images_trunk
from mmjax.training.optimizer import decayed

_STAGE = re.compile(r"(?:stage|group)(\d+)_")
_FIRST = ("stem_", "whitening_")


def fine_tuning_rates(training: Training, params: Any) -> Rates | None:
    """Return the Rates that `freeze` and `layer_decay` ask for; None where they ask for nothing.

    The part at depth d of D learns at `layer_decay ** (D - d)`: the head is D, the stem 0, as in BEiT's layer-wise
    decay (arXiv 2106.08254) but by stage. Frozen parts have rate 0, which their decay is multiplied by too. Columns
    that are joined with images, and the join, learn at full rate.
    """
    decay = 1.0 if training.layer_decay is UNSET else training.layer_decay
    if training.freeze == "none" and decay == 1.0:
        return None
    trunk = images_trunk({"params": params})["params"]
    depths = depths_of(trunk)
    last = max(depths.values())
    frozen = {"none": -1, "trunk": last - 1}.get(str(training.freeze), training.freeze)
    assert isinstance(frozen, int)
    rates = {name: 0.0 if at <= frozen else decay ** (last - at) for name, at in depths.items()}
    slower = {name: jax.tree.map(lambda _, rate=rates[name]: rate, module) for name, module in trunk.items()}
    full = {"params": jax.tree.map(lambda _: 1.0, params)}
    factors = with_images_trunk(full, {"params": slower})["params"]
    return Rates(factors, jax.tree.map(float, decayed(params)))


def depths_of(params: Any) -> dict[str, int]:
    """Return how deep each module of an image network lies: stem 0, stage or group n n, last convolution, head.

    >>> depths_of({"stem_conv": 0, "stage1_block1_conv1": 0, "last_conv": 0, "head": 0})
    {'stem_conv': 0, 'stage1_block1_conv1': 1, 'last_conv': 2, 'head': 3}
    """
    stages = {name: int(found[1]) for name in params if (found := _STAGE.match(name))}
    after = max(stages.values(), default=0) + 1
    ends = {name: 0 if name.startswith(_FIRST) else after for name in params if name not in stages}
    has_last = any(name.startswith("last_") for name in params)
    ends |= {"head": after + has_last}
    return {name: stages[name] if name in stages else ends[name] for name in params}
