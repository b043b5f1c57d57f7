"""The one thread that owns the device, and which threads go first where there are fewer cores than threads.

On two busy cores the event loop waits for the threads that compute, and every probe with it: ResNet-18 at ten times its
peak, p99 of a probe 7 ms without priorities and 3 to 5 ms with them (`benchmarks/serving.py --only overload`).
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import NamedTuple, TypeVar

T = TypeVar("T")

COMPUTE, ASIDE = 10, 15
"""Niceness added to threads that compute, and to the one that loads and compiles while others answer."""


def step_back(niceness: int) -> None:
    """Let other threads go before the calling one, and before those that it starts. Of Linux only."""
    if sys.platform != "linux":  # elsewhere priorities are those of a whole process
        return
    with contextlib.suppress(OSError):
        own = os.getpriority(os.PRIO_PROCESS, os.getpid())
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(own + niceness, 19))


class Device(NamedTuple):
    """The one thread that runs compiled programs, and the turns it has to take."""

    turns: SimpleQueue[Callable[[], None] | None]
    thread: threading.Thread
    busy: threading.Lock
    """Held while something runs on the device."""


def start_device() -> Device:
    """Return a Device whose thread waits for turns."""
    turns: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
    busy = threading.Lock()

    def work() -> None:
        step_back(COMPUTE)
        while (turn := turns.get()) is not None:
            with busy:
                turn()

    thread = threading.Thread(target=work, name="device", daemon=True)
    thread.start()
    return Device(turns, thread, busy)


def on_device(device: Device, function: Callable[[], T]) -> T:
    """Return `function()`, run between two batches; what it raises is raised here. Not for the event loop."""
    done: Future[T] = Future()

    def turn() -> None:
        try:
            done.set_result(function())
        except Exception as error:  # noqa: BLE001  whoever waits must hear of it
            done.set_exception(error)

    device.turns.put(turn)
    return done.result()


def stop_device(device: Device) -> None:
    """End the thread after the turns that it was given before."""
    device.turns.put(None)
    device.thread.join()
