"""`amnesia` and `python -m amnesia`: the command line, from the first moment on."""

import os
import sys


def entry() -> None:
    """Run the command line; an interrupt ends it in one line, also while modules are still loaded, and at the end.

    So does a request to end (SIGTERM) and the end of the terminal (SIGHUP). The exit code is 128 and the number of the
    signal. What is imported before stands between the start of Python and the first moment at which that holds: nothing
    that Python has not loaded itself.
    """
    if sys.platform == "win32":
        print("error: amnesia does not run on Windows, but on Linux and macOS: use WSL or a container", file=sys.stderr)
        sys.exit(2)
    # Notices of the library, as of slower kernels while a model computes, have no place between lines of this program.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    code: object = 0
    try:
        sys.unraisablehook = _unraisable
        _catch()
        from amnesia.cli.main import main

        main(prog_name="amnesia")
    except KeyboardInterrupt as error:
        import contextlib

        with contextlib.suppress(OSError):  # The terminal may be gone.
            sys.stderr.write("interrupted: nothing was written\n")
        from amnesia.errors import signal_of

        code = 128 + signal_of(error)
    except SystemExit as done:
        code = done.code
    finally:
        import signal

        # What was to be done is done or said; libraries that clean up would only show where they stood.
        ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for each in ends:
            signal.signal(each, signal.SIG_IGN)
    if isinstance(code, int) and code - 128 in ends:
        _leave(code)
    sys.exit(code)


def _catch() -> None:
    """Let SIGTERM and SIGHUP interrupt; one that is ignored, as under `nohup`, stays so.

    Of processes that were started together, one may wait in a library for another that has failed, and hear of nothing:
    what started them ends them.
    """
    import signal

    from amnesia.files.processes import n_started

    for each in (signal.SIGTERM, signal.SIGHUP) if n_started() == 1 else ():
        if signal.getsignal(each) != signal.SIG_IGN:
            signal.signal(each, _interrupt)
            _CAUGHT.append(each)


_CAUGHT: list[int] = []


def _interrupt(number: int, _: object) -> None:
    import signal

    for each in _CAUGHT:  # A terminal that is closed may send two, and the first is to clean up.
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


def _unraisable(lost: "sys.UnraisableHookArgs") -> None:
    """Let an interrupt that came where nothing can be raised, as in a destructor, come again a moment later."""
    if not isinstance(lost.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    import signal
    import threading

    from amnesia.errors import signal_of

    for each in _CAUGHT:
        signal.signal(each, _interrupt)
    again = threading.Timer(0.01, signal.raise_signal, (signal_of(lost.exc_value),))
    again.daemon = True
    again.start()


def _leave(code: int) -> None:
    """End as interrupted.

    Where the interrupt went through code that was made from text, as by `dataclass`, Python would send it to itself
    once more, and the exit code be another one.
    """
    import atexit
    import contextlib

    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    if not sys.flags.safe_path:
        # `python -m` also finds modules in the working directory, which may be the folder of a model.
        del sys.path[0]
    entry()
