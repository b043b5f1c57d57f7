"""PyTorch's side of `tabular_speed.py`: the same network and steps, eager, as fast as an eager loop gets.

Run by the Python of `benchmarks/.peers` (see make_peers.py); imports torch and numpy alone. JSON on standard input:
{"arrays": path of an .npz, "threads", "batch_size", "learning_rate", "weight_decay", "cases": [{"hidden_layers",
"dropout", "epochs"}], "optimizers": ["plain" | "foreach" | "fused"]}. JSON on standard output: one object for each case
and optimizer.

Choices are in the peer's favour: rows are imputed, scaled and coded beforehand (mmjax does it in every step); an
epoch's rows are permuted by one gather, so that batches are views; one parameter group; the only metric is the sum of
losses; nothing waits for the loss within an epoch.
"""
# pyright: reportMissingImports=false

import json
import sys
import time
from typing import Any

import numpy as np
import torch
from torch import nn

Arrays = dict[str, torch.Tensor]


class MLP(nn.Module):
    """One embedding table for all categories, dense blocks of linear, SiLU and dropout, a linear head."""

    def __init__(self, arrays: Arrays, hidden_layers: list[int], dropout: float) -> None:
        super().__init__()
        rows, size = arrays["embedding_shape"].tolist()
        self.embedding = nn.Embedding(rows, size)
        width = arrays["dense"].shape[1] + arrays["category"].shape[1] * size
        blocks: list[nn.Module] = []
        for units in hidden_layers:
            blocks += [nn.Linear(width, units), nn.SiLU(), nn.Dropout(dropout)]
            width = units
        self.blocks = nn.Sequential(*blocks, nn.Linear(width, int(arrays["outputs"])))
        nn.init.normal_(self.embedding.weight, std=0.1)
        for module in self.blocks:
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, dense: torch.Tensor, category: torch.Tensor) -> torch.Tensor:
        """Return logits `[B, K]` for `dense f32[B, D]` and `category i64[B, C]`, rows of the table."""
        return self.blocks(torch.cat([dense, self.embedding(category).flatten(1)], dim=1))


def make_optimizer(net: nn.Module, request: dict[str, Any], kind: str) -> torch.optim.Optimizer:
    """Return AdamW in one of its three implementations."""
    return torch.optim.AdamW(
        net.parameters(),
        lr=request["learning_rate"],
        weight_decay=request["weight_decay"],
        foreach=kind == "foreach",
        fused=kind == "fused",
    )


def train_epoch(net: MLP, optimizer: torch.optim.Optimizer, arrays: Arrays, batch_size: int) -> float:
    """Return the mean loss of one epoch over every full batch."""
    steps = len(arrays["label"]) // batch_size
    order = torch.randperm(len(arrays["label"]))[: steps * batch_size]
    batches = zip(*(arrays[name][order].split(batch_size) for name in ("dense", "category", "label")), strict=True)
    total = torch.zeros(())
    for dense, category, label in batches:
        loss = nn.functional.cross_entropy(net(dense, category), label)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.detach()
    return float(total) / steps


def timed(arrays: Arrays, request: dict[str, Any], case: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return samples/s over all epochs but the first, which warms up."""
    torch.manual_seed(0)
    net = MLP(arrays, case["hidden_layers"], case["dropout"]).train()
    optimizer = make_optimizer(net, request, kind)
    started = time.perf_counter()
    losses = [train_epoch(net, optimizer, arrays, request["batch_size"])]
    warm = time.perf_counter()
    losses += [train_epoch(net, optimizer, arrays, request["batch_size"]) for _ in range(case["epochs"] - 1)]
    seconds = time.perf_counter() - warm
    batches = len(arrays["label"]) // request["batch_size"]
    return {
        "hidden_layers": case["hidden_layers"],
        "optimizer": kind,
        "samples_per_second": batches * request["batch_size"] * (case["epochs"] - 1) / seconds,
        "first_epoch_seconds": warm - started,
        "losses": losses,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
    }


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    with np.load(request["arrays"]) as stored:
        arrays = {name: torch.as_tensor(stored[name]) for name in stored.files}
    runs = [timed(arrays, request, case, kind) for case in request["cases"] for kind in request["optimizers"]]
    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "numpy": np.__version__}
    print(json.dumps({"runs": runs, "versions": versions}))


if __name__ == "__main__":
    main()
