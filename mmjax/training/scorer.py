"""Who scores rows in training: every program that looks at validation and test rows, of one model or its members."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.backend import compile_ahead, compiled
from mmjax.data.pipeline import pad_rows, take
from mmjax.data.prepare import Prepared
from mmjax.parts import Parts, States
from mmjax.schema import Batch
from mmjax.training.calibration import as_sure
from mmjax.training.decide import answered
from mmjax.training.losses import Loss
from mmjax.training.members import Members, apart
from mmjax.training.outputs import Output, Prediction
from mmjax.training.program import shaped
from mmjax.training.scoring import LABEL_FIELDS, Forward, Scores, inputs_of, metrics_of, pass_rows, score, score_beside

SURE_ROWS = 4096
"""Training rows at most that tell how sure models are."""


class Known:
    """What one network that learns no more said of each row, so that it is asked once; a class, for it grows."""

    def __init__(self, ask: Callable[[np.ndarray], np.ndarray], rows: int) -> None:
        self._ask, self._asked, self._outputs = ask, np.zeros(rows, bool), np.empty(0)

    def outputs(self, rows: np.ndarray) -> np.ndarray:
        """Return its raw outputs for rows, one or more, `f32[N, ...]`; it is asked for those that are not known."""
        new = np.unique(rows[~self._asked[rows]])
        if len(new):
            found = self._ask(new)
            if not self._asked.any():
                self._outputs = np.empty((len(self._asked), *found.shape[1:]), found.dtype)
            self._outputs[new], self._asked[new] = found, True
        return self._outputs[rows]


class Scorer(NamedTuple):
    """Scores rows with one compiled shape."""

    prepared: Prepared
    forward: jax.stages.Wrapped
    """Of all members together."""
    member: Forward
    """Of one of them; the same where there is one model."""
    beside: jax.stages.Wrapped
    """Of members beside each other, each of rows of its own: the batch has a leading axis too."""
    together: Output
    """What `forward` makes of raw outputs."""
    alone: Output
    """What `member` makes of them."""
    answer: Callable[[Any, np.ndarray], Prediction]
    """The `apply` of the Output of the members that a row is held from, compiled."""
    total: jax.stages.Wrapped
    """The mean loss of outputs, labels and weights or None, compiled."""
    totals: jax.stages.Wrapped
    """That of members, whose arrays have a leading axis."""
    rows: int
    """Rows of every forward pass: as many as there are to look at after each epoch, up to a limit."""
    members: Members | None
    under_way: Mapping[Any, Future[None]] = MappingProxyType({})
    """What is being compiled: "forward", and the loss by its number of rows; see `started`."""
    outputs: jax.ShapeDtypeStruct | None = None
    """What `forward` returns of a pass, where that is being compiled."""
    known: tuple[Known, ...] = ()
    """Of each member; see `remembering`."""

    def remembering(self, states: States) -> "Scorer":
        """Return the Scorer of members that learn no more, each of which is asked of an image once.

        For these variables and Transform only; the Output's state may be another at each call. What is said of all
        members is made of what each says, so it may round otherwise than `forward` (by 1e-7). One model is asked as
        ever, and so are tables, whose passes are short.
        """
        if self.members is None or self.prepared.schema.image is None:
            return self
        rows = len(self.prepared.batch["label"])

        def of(own: States) -> Known:
            return Known(lambda new: self._score(self.member, own, new).outputs, rows)

        return self._replace(known=tuple(of(own) for own in self.each(states)))

    def started(self, states: States) -> "Scorer":
        """Return the Scorer of one model with what it will run being compiled meanwhile; the states may be shapes."""
        fields = {name: shaped(values, self.rows) for name, values in self.prepared.batch.items()}
        outputs, _ = jax.eval_shape(self.forward, *states, inputs_of(fields))
        under_way: dict[Any, Future[None]] = {"forward": compile_ahead(self.forward, *states, inputs_of(fields))}
        for split in ("validation", "train", "test"):
            rows = len(self.rows_of(split))
            each = (jax.ShapeDtypeStruct((rows, *like.shape[1:]), like.dtype) for like in (outputs, fields["label"]))
            weight = jax.ShapeDtypeStruct((rows,), jnp.float32) if "weight" in fields else None
            if rows and rows not in under_way:
                under_way[rows] = compile_ahead(self.total, *each, weight)
        return self._replace(under_way=under_way, outputs=outputs)

    def loss(self, outputs: np.ndarray, batch: Batch) -> float:
        """Return the mean loss of raw outputs."""
        self._wait(len(outputs))
        return float(self.total(outputs, batch["label"], batch.get("weight")))

    def _losses(self, outputs: Sequence[np.ndarray], answers: Sequence[Batch]) -> list[float]:
        """Return the `loss` of each model; of several by one program, fewer rows padded by some without weight."""
        if self.members is None:
            return [self.loss(*each) for each in zip(outputs, answers, strict=True)]
        most = max(map(len, outputs))
        fields = [
            {"weight": np.ones(len(own), np.float32)} | batch | {"outputs": own}
            for own, batch in zip(outputs, answers, strict=True)
        ]
        padded = [pad_rows(each, most) for each in fields]
        stacked_ = (np.stack([each[name] for each in padded]) for name in ("outputs", "label", "weight"))
        return np.asarray(self.totals(*stacked_)).tolist()

    def _wait(self, what: Any) -> None:
        if what in self.under_way:
            self.under_way[what].result()

    def scores(self, states: States, split: str) -> tuple[Scores, Batch]:
        """Return the Scores of a split and its labels and weights; `split` is `train`, `validation` or `test`.

        With folds, `validation` is all rows that are not for test, each answered by the members that it is held from.
        """
        rows = self.rows_of(split)
        if split == "validation" and self.members and self.members.folds:
            return self._out_of_fold(states, rows), self.answers(rows)
        return self._together(states, rows), self.answers(rows)

    def scores_without(self, states: States, split: str, hide: Callable[[Batch], Batch]) -> Scores:
        """Return the Scores of a split, by all members, of inputs from which something is hidden."""
        return self._score(self.forward, states, self.rows_of(split), hide)

    def metrics(
        self,
        states: States,
        rows: Sequence[np.ndarray],
        answer: Callable[[int, Scores], Scores] = lambda index, scores: scores,
    ) -> list[dict[str, float]]:
        """Return `loss` and every metric of each model, on rows of its own; an empty dict where it has none.

        `answer` makes other answers of a model's outputs, as those of a threshold.
        """
        found = {index: answer(index, scores) for index, scores in self._beside(states, rows).items()}
        if not found:
            return [{} for _ in rows]
        answers = [self.answers(rows[index]) for index in found]
        losses = self._losses([scores.outputs for scores in found.values()], answers)
        exact = (metrics_of(self.prepared.schema, *pair) for pair in zip(found.values(), answers, strict=True))
        told = {index: {"loss": loss} | own for index, loss, own in zip(found, losses, exact, strict=True)}
        return [told.get(index, {}) for index in range(len(rows))]

    def sureness(self, states: States) -> float:
        """Return the temperature that makes the mean over all folds as sure as the models of one fold are (`as_sure`).

        Of answers to training rows, `SURE_ROWS` at most, which all models but those of one fold have seen: no label is
        looked at. The states hold what calibrates one fold's models, and 1 as `mean_temperature`.
        """
        assert self.members is not None, "there are folds"
        rows = self.prepared.split.train
        if len(rows) > SURE_ROWS:
            rows = np.sort(np.random.default_rng(0).permutation(rows)[:SURE_ROWS])
        found, weight = self._together(states, rows), self.answers(rows).get("weight")
        outputs = np.split(found.outputs, self.members.folds, axis=1)
        outputs = [own[:, 0] if own.shape[1] == 1 else own for own in outputs]
        each = np.stack([np.asarray(self.answer(states.output, own).probabilities) for own in outputs])
        mean = found.probabilities
        assert mean is not None, "a number has no temperature"
        if self.prepared.schema.target.labels:  # yes and no of each
            mean, each = (np.stack([p, 1.0 - p], axis=-1) for p in (mean.reshape(-1), each.reshape(len(each), -1)))
            weight = None if weight is None else np.repeat(weight, len(mean) // len(rows))
        return as_sure(mean, each, weight)

    def each(self, states: States) -> list[States]:
        """Return the states of each member; a single model's are its own."""
        if self.members is None:
            return [states]
        variables = apart(states.variables)
        folded = apart(states.transform) if self.members.folds else [states.transform] * len(variables)
        return [States(own, fitted, states.output) for own, fitted in zip(variables, folded, strict=True)]

    def rows_of(self, split: str) -> np.ndarray:
        """Return the rows of a split as `scores` understands it."""
        found = self.prepared.split
        return getattr(found, "train" if split == "validation" and found.folds is not None else split)

    def answers(self, rows: np.ndarray) -> Batch:
        """Return labels and weights."""
        return take({name: found for name, found in self.prepared.batch.items() if name in LABEL_FIELDS}, rows)

    def _score(
        self, forward: Forward, states: States, rows: np.ndarray, change: Callable[[Batch], Batch] = lambda batch: batch
    ) -> Scores:
        self._wait("forward")
        return score(forward, states, self.prepared.batch, rows, largest=self.rows, smallest=self.rows, change=change)

    def _together(self, states: States, rows: np.ndarray) -> Scores:
        """Return the Scores of rows by all members."""
        if not self.known:
            return self._score(self.forward, states, rows)
        each = [known.outputs(rows) for known in self.known]
        shaped = [own.reshape(len(own), -1, own.shape[-1]) for own in each]  # a network may have members of its own
        return answered(self.together, states.output, np.concatenate(shaped, axis=1))

    def _beside(self, states: States, rows: Sequence[np.ndarray]) -> dict[int, Scores]:
        """Return the Scores of each model on rows of its own: of a table by one program, as on a GPU starting one takes
        longer than what it computes; a pass of images is long enough. Models without rows are left out."""
        asked = [index for index, own in enumerate(rows) if len(own)]
        if self.members is not None and self.prepared.schema.image is None and asked:
            found = score_beside(self.beside, states, self.prepared.batch, rows, size=self.rows)
            return {index: found[index] for index in asked}
        if self.known:
            said = {index: self.known[index].outputs(rows[index]) for index in asked}
            return {index: answered(self.alone, states.output, outputs) for index, outputs in said.items()}
        each = self.each(states) if asked else []
        return {index: self._score(self.member, each[index], rows[index]) for index in asked}

    def _out_of_fold(self, states: States, rows: np.ndarray) -> Scores:
        """Return the Scores of all rows, each from the M members of its fold; outputs are f32[N, M, O]."""
        assert self.members is not None
        of_fold, held, parts = self.members.of_fold, self.members.held, []
        each = [scores.outputs for scores in self._beside(states, held).values()]
        for first in range(0, len(each), of_fold):
            own = each[first : first + of_fold]
            parts.append(np.concatenate([one.reshape(len(one), -1, one.shape[-1]) for one in own], axis=1))
        outputs = np.concatenate(parts)[np.argsort(np.searchsorted(rows, np.concatenate(held[::of_fold])))]
        outputs = outputs[:, 0] if outputs.shape[1] == 1 else outputs
        answer = jax.tree.map(np.asarray, self.answer(states.output, outputs))
        return Scores(outputs, *answer)


def make_scorer(
    prepared: Prepared, parts: Parts, loss: Loss, output_state: Any, precision: str, members: Members | None
) -> Scorer:
    """Return the Scorer of a run; nothing is compiled before it is asked."""
    held = members.held if members else (prepared.split.validation,)
    rows = pass_rows(prepared.schema, max(map(len, held)) or len(prepared.split.train))

    def total(outputs: jax.Array, label: jax.Array, weight: jax.Array | None) -> jax.Array:
        return loss(outputs, parts.output.targets(output_state, label), weight)

    whole, member = compiled_forwards(parts, precision)
    folded = bool(members and members.folds)

    def beside(variables: Any, transform: Any, output: Any, batch: Batch) -> Any:
        def one(own: Any) -> Any:
            alone, fitted, rows_of_own = own
            return parts.member(alone, fitted if folded else transform, output, rows_of_own)

        return jax.lax.map(one, (variables, transform if folded else (), batch))

    together = compiled(beside, precision=precision)
    answer, one, each = compiled(parts.held_out.apply), compiled(total), compiled(jax.vmap(total))
    return Scorer(prepared, whole, member, together, parts.output, parts.alone, answer, one, each, rows, members)


def compiled_forwards(parts: Parts, precision: str) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
    """Return the forward pass of all members together, and that of one; one program where there is one model."""
    whole = compiled(parts.forward, precision=precision)
    return whole, whole if parts.member is parts.forward else compiled(parts.member, precision=precision)
