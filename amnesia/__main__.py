"""`amnesia` and `python -m amnesia`: the command line, from the first moment on."""

import os
import sys

_INTERRUPTED = 130


def entry() -> None:
    """Run the command line; an interrupt ends it in one line, also while modules are still loaded, and at the end.

    What is imported before stands between the start of Python and the first moment at which that holds: nothing that
    Python has not loaded itself.
    """
    if sys.platform == "win32":
        print("error: amnesia does not run on Windows, but on Linux and macOS: use WSL or a container", file=sys.stderr)
        sys.exit(2)
    # Notices of the library, as of slower kernels while a model computes, have no place between lines of this program.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    code: object = 0
    try:
        sys.unraisablehook = _unraisable
        from amnesia.cli.main import main

        main(prog_name="amnesia")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: nothing was written\n")
        code = _INTERRUPTED
    except SystemExit as done:
        code = done.code
    finally:
        import signal

        # What was to be done is done or said; libraries that clean up would only show where they stood.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if code == _INTERRUPTED:
        _leave()
    sys.exit(code)


def _unraisable(lost: "sys.UnraisableHookArgs") -> None:
    """Let an interrupt that came where nothing can be raised, as in a destructor, come again a moment later."""
    if not issubclass(lost.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    import signal
    import threading

    again = threading.Timer(0.01, signal.raise_signal, (signal.SIGINT,))
    again.daemon = True
    again.start()


def _leave() -> None:
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
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    if not sys.flags.safe_path:
        # `python -m` also finds modules in the working directory, which may be the folder of a model.
        del sys.path[0]
    entry()
