"""What is known of the networks that a config may name, options and sizes: its rules and the networks both read it."""

from typing import NamedTuple

TABLE_NETWORKS = ("mlp", "realmlp", "realmlp_s", "tabm")
"""Those for tables; all others look at images."""


class ResNetRow(NamedTuple):
    """One network: blocks in each stage, channels of the first stage (doubled at each next), kind of block."""

    stages: tuple[int, ...]
    width: int = 64
    bottleneck: bool = False
    deep: bool = False
    """The -D variant (He et al. 2018, arXiv 1812.01187): three 3x3 in the stem, shortcuts that average first."""


RESNETS = {
    "resnet18": ResNetRow((2, 2, 2, 2)),
    "resnet34": ResNetRow((3, 4, 6, 3)),
    "resnet50": ResNetRow((3, 4, 6, 3), bottleneck=True),
}
RESNETS |= {f"{name}d": row._replace(deep=True) for name, row in RESNETS.items()}


class StageRow(NamedTuple):
    """One stage of B0 (the paper's table 1); the 1x1 convolution before the head has four times the last channels."""

    expand: int
    kernel_px: int
    stride: int
    channels: int
    repeats: int


B0_STAGES = (
    StageRow(1, 3, 1, 16, 1),
    StageRow(6, 3, 2, 24, 2),
    StageRow(6, 5, 2, 40, 2),
    StageRow(6, 3, 2, 80, 3),
    StageRow(6, 5, 1, 112, 3),
    StageRow(6, 5, 2, 192, 4),
    StageRow(6, 3, 1, 320, 1),
)
"""EfficientNet's (Tan & Le 2019, arXiv 1905.11946), of all sizes."""


class SizeRow(NamedTuple):
    """One size: multipliers of B0's channels and repeats, dropout before the head."""

    width: float
    depth: float
    dropout: float
    tensorflow: bool = False
    """Paddings, epsilon and momentum of TensorFlow, with which the paper's own weights were trained (timm's `tf_`)."""


EFFICIENTNETS = {
    "efficientnet_b0": SizeRow(1.0, 1.0, 0.2),
    "efficientnet_b1": SizeRow(1.0, 1.1, 0.2),
    "efficientnet_b2": SizeRow(1.1, 1.2, 0.3),
    "efficientnet_b3": SizeRow(1.2, 1.4, 0.3),
    "efficientnet_b4": SizeRow(1.4, 1.8, 0.4),
}
EFFICIENTNETS |= {f"tf_{name}": size._replace(tensorflow=True) for name, size in EFFICIENTNETS.items()}


_REALMLP = ("input_dim", "hidden_layers", "activation", "embedding_dim")
_RESNET = ("stages", "width", "dropout", "activation", "stem")
OPTIONS = {
    "mlp": ("input_dim", "hidden_layers", "dropout", "activation", "normalization", "residual", "embedding_dim"),
    "realmlp": (*_REALMLP, "dropout"),
    "realmlp_s": _REALMLP,
    "tabm": (*_REALMLP, "dropout", "members"),
    **dict.fromkeys(("airbench", "airbench_s"), ("dropout", "activation", "mirrored", "width")),
    "resnet": _RESNET,
    **dict.fromkeys(RESNETS, _RESNET[2:]),
    **dict.fromkeys(EFFICIENTNETS, ("dropout", "stem")),
}
"""Keys of `model.architecture` that a config may have beside the network's name; EfficientNet's activation is fixed."""


def stages_of(name: str) -> int | None:
    """Return how many stages a network has that there are pretrained weights for; None for any other.

    >>> stages_of("resnet18"), stages_of("tf_efficientnet_b0"), stages_of("mlp")
    (4, 7, None)
    """
    if name in RESNETS:
        return len(RESNETS[name].stages)
    return len(B0_STAGES) if name in EFFICIENTNETS else None
