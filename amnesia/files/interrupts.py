"""Interrupts by a signal: not where a module is being loaded, where raising them can end the process otherwise.

Libraries in C++ call Python while they are loaded, and abort with a message of their own where that raises: torch 2.13
in `torch.distributed`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

from amnesia.files.processes import n_started

_LOADER = "<frozen importlib._bootstrap>"
_DELAY = 0.01  # Seconds after which an interrupt comes again.

_caught: list[int] = []
_is_working = False


def catch() -> None:
    """Let SIGTERM and SIGHUP interrupt, too; one that is ignored, as under `nohup`, stays so.

    Of processes that were started together, one may wait in a library for another that has failed, and hear of nothing:
    what started them ends them.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    for each in (signal.SIGTERM, signal.SIGHUP) if n_started() == 1 else ():
        if signal.getsignal(each) != signal.SIG_IGN:
            signal.signal(each, _interrupt)
            _caught.append(each)


def work_begins() -> None:
    """From now on something may be there that an interrupted command has to clean up, or to tell of."""
    global _is_working
    _is_working = True


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _is_loading(frame):
        if not _is_working:
            _end(number)
        _again(number)
        return
    for each in _caught:  # A terminal that is closed may send two, and the first is to clean up.
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


def _is_loading(frame: FrameType | None) -> bool:
    """Whether a module is being loaded where the signal came."""
    while frame is not None:
        if frame.f_code.co_filename == _LOADER:
            return True
        frame = frame.f_back
    return False


def _end(number: int) -> None:
    """End at once."""
    with contextlib.suppress(OSError):  # The terminal may be gone.
        os.write(2, b"interrupted: nothing was written\n")
    os._exit(128 + number)


def _again(number: int) -> None:
    import threading

    again = threading.Timer(_DELAY, signal.raise_signal, (number,))
    again.daemon = True
    again.start()


def unraisable(lost: sys.UnraisableHookArgs) -> None:
    """Let an interrupt that came where nothing can be raised, as in a destructor, come again a moment later."""
    if not isinstance(lost.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    from amnesia.errors import signal_of

    for each in _caught:
        signal.signal(each, _interrupt)
    _again(signal_of(lost.exc_value))
