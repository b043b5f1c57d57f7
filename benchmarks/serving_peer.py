"""The peers of `serving.py`: the same network behind FastAPI with PyTorch eager, and behind LitServe; JSON on stdin.

Run by the Python of `benchmarks/.peers` (see make_peers.py). {"kind": "fastapi" | "litserve", "port", "columns",
"hidden_layers", "classes", "threads"}. Both answer `POST /predict/tabular` with `{"features": [[...]]}`. Choices are in
their favour: no schema, no missing cells, no counting, no log; the network is evaluated in inference mode; FastAPI's
handler calls it on the event loop, as a thread costs more than so small a network.
"""
# pyright: reportMissingImports=false

import itertools
import json
import sys
from typing import Any

import torch
from torch import nn


def network(asked: dict[str, Any]) -> nn.Module:
    """Return the network: dense layers with SiLU."""
    sizes = [asked["columns"], *asked["hidden_layers"]]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], asked["classes"])).eval()


def answer(net: nn.Module, features: list[list[float]]) -> dict[str, Any]:
    """Return what mmjax returns, as far as a client reads it."""
    with torch.inference_mode():
        probabilities = torch.softmax(net(torch.tensor(features, dtype=torch.float32)), dim=1)
    return {"predictions": probabilities.argmax(dim=1).tolist(), "probabilities": probabilities.tolist()}


def fastapi(asked: dict[str, Any]) -> None:
    """Serve by FastAPI and uvicorn, one process, the fast event loop and parser."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Rows(BaseModel):
        features: list[list[float]]

    app, net = FastAPI(), network(asked)

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/predict/tabular")
    async def predict(rows: Rows) -> dict[str, Any]:
        return answer(net, rows.features)

    uvicorn.run(app, port=asked["port"], log_level="warning", access_log=False, loop="uvloop", http="httptools")


def litserve(asked: dict[str, Any]) -> None:
    """Serve by LitServe as its documentation does: one worker, no batching."""
    from litserve import LitServer
    from serving_peer_litserve import API

    api = API(api_path="/predict/tabular")
    api.asked = asked
    server = LitServer(api, accelerator="cpu", healthcheck_path="/health/live")
    server.run(port=asked["port"], log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    {"fastapi": fastapi, "litserve": litserve}[request["kind"]](request)
