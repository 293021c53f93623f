"""What a training loop changes about its process: signal handlers and garbage collection."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

# Why a run was stopped, and the exit code that shells expect for it.
STOP_EXIT_CODES = {"Ctrl-C": 130, "SIGTERM": 143, "SIGHUP": 129}
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


@contextmanager
def stop_on_signals() -> Iterator[list[str]]:
    """Yields a list that receives a reason on Ctrl-C, SIGTERM or SIGHUP (the terminal was closed), for the loop to end
    after the current step and save. A second signal raises KeyboardInterrupt. An ignored SIGHUP (nohup) stays ignored.
    """
    stop: list[str] = []

    def handle(signum: int, frame: object) -> None:
        if stop:
            raise KeyboardInterrupt
        stop.append("Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name)
        with suppress(OSError):  # the terminal may be gone
            print("\nStopping after this step; press Ctrl-C again to stop without saving.", file=sys.stderr)

    before: dict[int, Any] = {}
    try:
        for name in _SIGNALS:
            signum = getattr(signal, name, None)  # Windows has no SIGHUP
            if signum is not None and not (name == "SIGHUP" and signal.getsignal(signum) == signal.SIG_IGN):
                before[signum] = signal.signal(signum, handle)
    except ValueError:  # not in the main thread: a notebook's worker, for example
        pass
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def freezable_garbage() -> Iterator[Callable[[], None]]:
    """Yields a function after which garbage collection skips all existing objects, until the block ends.

    Compiling leaves so many objects that a full collection takes a third of a second, in the middle of some later step.
    """
    already_frozen = gc.get_freeze_count() > 0  # by somebody else, whose objects stay frozen

    def freeze() -> None:
        gc.collect()
        gc.freeze()

    try:
        yield freeze
    finally:
        if not already_frozen:
            gc.unfreeze()
