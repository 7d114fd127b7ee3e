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
        from amnesia.files import interrupts

        sys.unraisablehook = interrupts.unraisable
        interrupts.catch()
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
