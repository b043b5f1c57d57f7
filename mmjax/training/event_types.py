"""What a training run tells its watchers: plain values, no arrays, so that they may be kept, printed and stored.

The trainer yields them in this order: one `Started`; then `Progressed` about once a second, one `EpochEnded` per epoch
and `Checkpointed` whenever something reached the disk; `Stopped` when early stopping ends the run; one `Finished`.
"""

from typing import Literal, NamedTuple


class Started(NamedTuple):
    """A run begins (or goes on after a resume); compilation comes next."""

    name: str
    epochs: int
    """The most epochs there can be; early stopping may end sooner."""
    steps_per_epoch: int
    batch_size: int
    train_rows: int
    validation_rows: int
    parameters: int
    """Number of trained scalars."""
    monitor: str
    """The metric that decides which epoch is best, such as `val_log_loss`; empty where nothing does."""
    direction: Literal["min", "max"]
    may_stop: bool = True
    """Whether early stopping may end the run sooner."""
    seeds: int = 0
    """How many models of as many seeds are trained, of which the first is kept; 0 without `training.seeds`."""


class Progressed(NamedTuple):
    """A sign of life, about once a second."""

    epoch: int
    """1-based: the epoch under way."""
    epochs: int
    step: int
    """Optimizer steps done since the beginning of the run."""
    total_steps: int
    samples_per_second: float
    loss: float
    """Mean training loss since the last event; NaN where it is not known."""


class EpochEnded(NamedTuple):
    """One epoch is trained and validated."""

    epoch: int
    """1-based."""
    epochs: int
    step: int
    """Optimizer steps done since the beginning of the run."""
    metrics: dict[str, float]
    """`train_loss`, `train_accuracy`, `val_loss`, `val_*`; NaN where a metric is undefined."""
    learning_rate: float
    """At the epoch's last step."""
    seconds: float
    """Wall clock of this epoch, validation included, compilation left out."""
    samples_per_second: float
    improved: bool
    """True where the monitored metric is the best so far."""


class Checkpointed(NamedTuple):
    """The state of `step` is safely on disk."""

    step: int
    path: str


class Stopped(NamedTuple):
    """Early stopping ends the run after `epoch`."""

    epoch: int
    reason: str
    """In words, such as `no better val_log_loss for 10 epochs`."""


class Finished(NamedTuple):
    """The run is over; nothing follows."""

    epoch: int
    """The last epoch trained."""
    best_epoch: int
    """0 where no epoch was measured."""
    monitor: str
    best_metric: float
    seconds: float
    reason: str
    """In words, such as `all epochs done`, `early stopping` or `interrupted`."""
    models: int = 1
    """How many were trained; of several `best_metric` is the mean of each one's best."""
    seeds: int = 0
    """As in Started."""


Event = Started | Progressed | EpochEnded | Checkpointed | Stopped | Finished
