"""Signals: the first waits for a good moment, the next does not, and a process that cannot hear them ends in time."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mmjax.interrupts import Ending, Terminated, held
from tests.conftest import REPOSITORY


def send(number: signal.Signals) -> None:
    """Let this process get the signal, and Python run its handler."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


def work(signals: list[signal.Signals], reached: list[str], *, asks: bool = True) -> None:
    """Get the signals one after the other while working, then ask whether to end, and end."""
    with held() as ending:
        assert not ending()
        for number in signals:
            send(number)
            reached.append(f"after {number.name}")
        if asks and ending():
            raise Ending
        reached.append("the end")


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
@pytest.mark.parametrize("asks", [True, False])
def test_the_first_signal_waits_for_a_good_moment(
    number: signal.Signals, error: type[BaseException], asks: bool
) -> None:
    before, reached = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)], []
    with pytest.raises(KeyboardInterrupt) as caught:
        work([number], reached, asks=asks)
    assert caught.type is error
    assert reached == [f"after {number.name}"] + ["the end"] * (not asks)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_without_a_signal_nothing_happens() -> None:
    before, reached = signal.getsignal(signal.SIGTERM), []
    work([], reached)
    assert reached == ["the end"]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_wait(second: signal.Signals) -> None:
    before, reached = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt):
        work([signal.SIGINT, second], reached)
    assert reached == ["after SIGINT"]
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_of_the_work_is_its_own() -> None:
    with pytest.raises(ValueError, match="its own"), held():
        raise ValueError("its own")


def test_outside_the_main_thread_nothing_is_held() -> None:
    found = []

    def other() -> None:
        with held() as ending:
            found.append((ending(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [(False, signal.getsignal(signal.SIGTERM))]


BEGIN = """
import ctypes, signal, sys, time
from mmjax.interrupts import end_in_time, held

def deaf():  # as while XLA compiles: a lock that this thread waits for in C, where no handler of Python's runs
    lock = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(lock)

def last_words(code):
    print("last words", code, flush=True)

signal.signal(signal.SIGTERM, signal.default_int_handler)
with end_in_time(last_words, grace_s=1.0):  # busy machines leave a process without a core for a while
    print("ready", flush=True)
"""


@contextmanager
def doing(body: str) -> Iterator[subprocess.Popen[str]]:
    """A process that does so within `end_in_time`."""
    command = [sys.executable, "-c", BEGIN + "".join(f"    {line}\n" for line in body.splitlines())]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.1)
            yield process
        finally:
            process.kill()


def test_a_process_that_cannot_hear_sigterm_ends_all_the_same() -> None:
    with doing("deaf()") as process:
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (143, "last words 143\n")


def test_a_process_that_cannot_hear_one_ctrl_c_is_let_be_and_ends_at_two() -> None:
    with doing("deaf()") as process:
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1.5)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "last words 130\n")


def test_a_process_that_goes_on_is_let_to_end_by_itself() -> None:
    body = "signal.signal(signal.SIGTERM, lambda *_: print('heard', flush=True))\n"
    body += "for _ in range(75):\n    time.sleep(0.02)\nprint('done')"
    with doing(body) as process:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "heard\ndone\n", "")


def test_a_process_that_hears_ends_before_it_is_ended() -> None:
    with doing("time.sleep(60)") as process:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert (out, err.splitlines()[-1]) == ("", "KeyboardInterrupt")
