"""Ctrl-C, raised by real signals."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jobs.interrupt import Interrupt


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Python's own handler before, whatever it is after."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def in_a_thread(action: Callable[[], Any]) -> list[BaseException]:
    """What the action raised there."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised


def test_it_ends_the_block_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupt():
        press()
        pytest.fail("it went on")


def test_what_a_library_swallows_is_raised_again_every_time() -> None:
    with Interrupt() as interrupt:
        with contextlib.suppress(KeyboardInterrupt):
            press()
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                interrupt.check()


def test_nobody_pressed_it_and_nothing_happens() -> None:
    with Interrupt() as interrupt:
        interrupt.check()


def test_it_is_heard_also_where_a_shell_had_it_ignored() -> None:
    """As in `semiprune run .. &` of a script."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    press()
    with pytest.raises(KeyboardInterrupt), Interrupt():
        press()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize("pressed", [False, True])
def test_afterwards_the_handler_is_the_one_from_before(pressed: bool) -> None:
    with contextlib.suppress(KeyboardInterrupt), Interrupt():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        if pressed:
            press()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_thread_is_never_interrupted() -> None:
    """Progress is told from any thread; only the main one can end the command."""
    with Interrupt() as interrupt:
        with contextlib.suppress(KeyboardInterrupt):
            press()
        assert in_a_thread(interrupt.check) == []
        with pytest.raises(KeyboardInterrupt):
            interrupt.check()


def test_in_another_thread_the_handler_is_left_alone() -> None:
    def use() -> None:
        with Interrupt() as interrupt:
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            interrupt.check()

    assert in_a_thread(use) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
