"""The training room: losses, metrics, optimizers, the step, and the loop as a generator of events."""
