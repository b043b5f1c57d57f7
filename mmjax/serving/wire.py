"""The wire: how much a request may be, what a refusal is, and scores as bytes of a reply. No HTTP library here."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec

from mmjax.artifact.predictor import Predictions, Predictor, set_texts, to_predictions
from mmjax.errors import MmjaxError
from mmjax.training.scoring import Scores

MAX_TABLE_BYTES = 8 * 2**20
"""Largest body of a table request."""
MAX_IMAGE_BYTES = 16 * 2**20
"""Largest body of an image request."""
MAX_TENSOR_BYTES = 64 * 2**20
"""Largest body of a request of the Open Inference Protocol, once inflated; its JSON is at most MAX_TABLE_BYTES."""
MAX_ROWS = 4096
"""Rows of one table request."""
MAX_IMAGES = 16
"""Images of one request."""
MAX_PIXELS = 25_000_000
"""Pixels of one image: they are checked before any is decoded."""


class Refused(MmjaxError):
    """A request that is not answered: an HTTP status, a stable word for the reason, a line for each problem."""

    def __init__(self, status: int, reason: str, problems: str | Sequence[str], *, retry_after_s: int = 0) -> None:
        super().__init__(problems)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s


class ModelName(msgspec.Struct, frozen=True):
    """Which model answered; `version` is null for a bundle that is in no registry."""

    name: str
    version: int | None


class Reply(msgspec.Struct, frozen=True):
    """The answer for N rows or images, in the order they came."""

    predictions: list[int | float | list[int]]
    """Class indices, or values; of a model of several labels [N][L], 1 where a label holds, else 0."""
    labels: list[str | list[str]] | None
    """Class texts, or the names of the labels that hold for each row; null for regression."""
    probabilities: list[list[float]] | None
    """[N][K] in the order of the model's classes; of labels each by itself; null for regression."""
    inference_time_ms: float
    """The compiled call with its transfers, without decoding and waiting."""
    model: ModelName
    request_id: str
    uncertainty: list[float] | msgspec.UnsetType = msgspec.UNSET
    """How far the members of the model disagree, a number a row; absent for a model of one member."""
    sets: list[list[str]] | msgspec.UnsetType = msgspec.UNSET
    """[N]: the classes, or labels, in each row's conformal set; only with `training.coverage`."""
    intervals: list[list[float]] | msgspec.UnsetType = msgspec.UNSET
    """[N][2], lower and upper end; only of regressions trained with `training.coverage` or `loss: pinball`."""
    abstained: list[bool] | msgspec.UnsetType = msgspec.UNSET
    """[N]: rows that the model is too unsure of to answer; only with `abstain_below`."""
    quantiles: list[dict[str, float]] | msgspec.UnsetType = msgspec.UNSET
    """[N]: level -> value, such as {"0.25": 3.1, "0.5": 4.0}, never descending; only with `loss: pinball`."""
    warnings: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    """What the answers may suffer from, a line each, rows counted from 1; absent where there is nothing to tell."""


class Problem(msgspec.Struct, frozen=True):
    """Why there is no answer (RFC 9457, application/problem+json)."""

    type: str
    title: str
    status: int
    detail: str
    error: str
    """The detail once more, where clients of other servers look for it."""
    errors: tuple[str, ...]
    """One line for each thing that is wrong."""
    request_id: str


_encode = msgspec.json.Encoder().encode


class Words(NamedTuple):
    """Scores as a Reply has them, row by row; see there."""

    predictions: list[int | float | list[int]]
    labels: list[str | list[str]] | None
    probabilities: list[list[float]] | None
    uncertainty: list[float] | msgspec.UnsetType = msgspec.UNSET
    sets: list[list[str]] | msgspec.UnsetType = msgspec.UNSET
    intervals: list[list[float]] | msgspec.UnsetType = msgspec.UNSET
    abstained: list[bool] | msgspec.UnsetType = msgspec.UNSET
    quantiles: list[dict[str, float]] | msgspec.UnsetType = msgspec.UNSET

    def part(self, start: int, stop: int) -> "Words":
        """Return the rows from `start` to before `stop`."""
        rows: list[Any] = [words[start:stop] if isinstance(words, list) else words for words in self]
        return Words(*rows)


def words_of(predictor: Predictor, scores: Scores) -> Words:
    """Return a model's Scores in the words of a reply."""
    schema = predictor.schema
    uncertainty = msgspec.UNSET if scores.uncertainty is None else scores.uncertainty.reshape(-1).tolist()
    if scores.probabilities is None:
        found = to_predictions(predictor, scores)
        intervals = msgspec.UNSET if found.intervals is None else found.intervals.tolist()
        quantiles = msgspec.UNSET if found.quantiles is None else quantiles_by_level(found)
        return Words(found.prediction.tolist(), None, None, uncertainty, intervals=intervals, quantiles=quantiles)
    predictions, classes = scores.prediction.tolist(), schema.target.classes
    labels: list[Any]  # texts, or lists of them
    if schema.target.labels:
        labels = set_texts(classes, scores.prediction)
    else:
        labels = [classes[index] for index in predictions]
    return Words(
        predictions,
        labels,
        scores.probabilities.tolist(),
        uncertainty,
        sets=msgspec.UNSET if scores.sets is None else set_texts(classes, scores.sets),
        abstained=msgspec.UNSET if scores.abstained is None else scores.abstained.tolist(),
    )


def quantiles_by_level(found: Predictions) -> list[dict[str, float]]:
    """Return the quantiles of each row by level, as texts: JSON has no other keys."""
    assert found.quantiles is not None, "a model of quantiles"
    levels = tuple(map(str, found.quantile_levels))
    return [dict(zip(levels, row, strict=True)) for row in found.quantiles.tolist()]


def encode_reply(
    words: Words, model: ModelName, *, seconds: float, request_id: str, warnings: tuple[str, ...] = ()
) -> bytes:
    """Return the Reply as JSON."""
    answers, more = words[:3], words[3:]
    told = warnings or msgspec.UNSET
    return _encode(Reply(*answers, round(1e3 * seconds, 4), model, request_id, *more, told))


def encode_problem(refused: Refused, request_id: str) -> bytes:
    """Return the Problem of a refusal as JSON."""
    detail = "; ".join(refused.problems[:3]) + (
        f" (and {len(refused.problems) - 3} more)" if len(refused.problems) > 3 else ""
    )
    problem = Problem(
        type=f"urn:mmjax:{refused.reason}",
        title=HTTPStatus(refused.status).phrase,
        status=refused.status,
        detail=detail,
        error=detail,
        errors=refused.problems,
        request_id=request_id,
    )
    return _encode(problem)


def encode_json(value: Mapping[str, Any] | Sequence[Any]) -> bytes:
    """Return JSON-ready values as JSON."""
    return _encode(value)
