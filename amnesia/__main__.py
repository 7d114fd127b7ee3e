"""`amnesia` and `python -m amnesia`: the command line, from the first moment on."""

from __future__ import annotations

import os
import signal
import sys


def entry() -> None:
    """Run the command line; an interrupt ends it in one line, also while modules are still loaded, and at the end."""
    if sys.platform == "win32":
        print("error: amnesia does not run on Windows, but on Linux and macOS: use WSL or a container", file=sys.stderr)
        sys.exit(2)
    # Notices of the library, as of slower kernels while a model computes, have no place between lines of this program.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        from amnesia.cli.main import main

        main(prog_name="amnesia")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: nothing was written\n")
        sys.exit(130)
    finally:
        # What was to be done is done or said; libraries that clean up would only show where they stood.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    if not sys.flags.safe_path:
        # `python -m` also finds modules in the working directory, which may be the folder of a model.
        del sys.path[0]
    entry()
