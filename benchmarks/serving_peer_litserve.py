"""LitServe's side of `serving_peer.py`: a file of its own, as LitServe sends the class to its worker by name."""
# pyright: reportMissingImports=false

from typing import Any

import litserve
import torch
from serving_peer import answer, network


class API(litserve.LitAPI):
    """The network behind `POST /predict/tabular`."""

    asked: dict[str, Any]

    def setup(self, device: str) -> None:
        """Make the network, in the worker."""
        torch.set_num_threads(self.asked["threads"])
        self.net = network(self.asked)

    def decode_request(self, request):  # LitServe makes a schema of any annotation; without one it hands over the JSON
        """Return the rows of a request."""
        return request["features"]

    def predict(self, features: list[list[float]]) -> dict[str, Any]:
        """Return the answer."""
        return answer(self.net, features)

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Return the answer as it is."""
        return output
