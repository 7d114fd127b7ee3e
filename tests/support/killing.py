"""A process that forks a child for each piece of work and kills it: before its n-th change of the disk, or after a time.

Run as a script. It reads a JSON object per line, {"work", "model", "output", "call", "delay"}, and answers each with
{"code", "seconds"}. It has no torch in it, so that a fork takes a millisecond.
"""

import io
import itertools
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np

from amnesia.domain import Cell, ModelRef
from amnesia.edits import ColumnEdit, DirectionEdit, EditSpec, EntityEdits
from amnesia.errors import AmnesiaError
from amnesia.files.journal import recover
from amnesia.outputs.in_place import edit_in_place, undo_in_place
from amnesia.outputs.proofs import take_back
from amnesia.outputs.write import save
from amnesia.sources.source import ModelSource
from amnesia.vector import Vector

PARIS = EntityEdits("Paris", (ColumnEdit(Cell(0, 3)), ColumnEdit(Cell(1, 4), 0.3)))
# Functions of the system, and methods of files, after which the disk is another one; `__exit__` closes a file.
SYSTEM = {
    "fchmod", "fsync", "ioctl", "link", "mkdir", "pwrite", "pwritev", "remove", "rename", "replace", "rmdir", "unlink"
}  # fmt: skip
METHODS = {"__exit__", "close", "flush", "write", "writelines"}


def changes_disk(function):
    """Whether a function that is written in C is about to change the disk."""
    if isinstance(function.__self__, io.IOBase):
        return function.__name__ in METHODS
    return function.__name__ in SYSTEM and function.__module__ in ("posix", "fcntl")


def _source(model: Path) -> ModelSource:
    return (
        ModelSource(model.parent, ModelRef("a/b"), gguf=model)
        if model.suffix == ".gguf"
        else ModelSource(model, ModelRef("a/b"))
    )


def _write(name, **options):
    return lambda model, output: save(name, _source(model), [PARIS], output, **options)


def _widen(model, output):
    """A direction over two columns, whose matrix gets a wider type."""
    vectors = (Vector.of(np.linspace(1, 2, size)) for size in (2, 256, 2, 2))
    group = EntityEdits("Ada", (DirectionEdit(0, 0, -0.5, (1, 5), *vectors),))
    save("gguf", _source(model), [group], output, tensor_type="f32")


WORK = {
    "copy": _write("safetensors"),
    "link": _write("safetensors", link=True),
    "replace": _write("safetensors", force=True),
    "adapter": _write("adapter"),
    "gguf": _write("gguf", link=True),
    "widen": _widen,
    "undo": lambda model, output: take_back(model, output),
    "edit in place": lambda model, output: edit_in_place(model, EditSpec((PARIS,), ModelRef("a/b"))),
    "undo in place": lambda model, output: undo_in_place(model.parent if model.suffix == ".gguf" else model),
    "recover": lambda model, output: recover(model.parent if model.suffix == ".gguf" else model),
}


def die_at(number):
    """Kill this process when it is about to change the disk for the `number`-th time, in whatever thread."""
    count = itertools.count(1)

    def hook(frame, event, function):
        if event == "c_call" and changes_disk(function) and next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(hook)
    sys.setprofile(hook)


def child(order):
    """Do the work; never returns."""
    try:
        if order["call"]:
            die_at(order["call"])
        WORK[order["work"]](Path(order["model"]), order["output"] and Path(order["output"]))
    except AmnesiaError as error:
        sys.setprofile(None)
        sys.stderr.write(f"{error}\n")
        os._exit(3)
    except BaseException as error:
        sys.setprofile(None)
        sys.stderr.write(f"{error!r}\n")
        os._exit(4)
    os._exit(0)


def main():
    """Answer orders until there are no more."""
    for line in sys.stdin:
        order = json.loads(line)
        start = time.perf_counter()
        process = os.fork()
        if process == 0:
            child(order)
        if order["delay"] is not None:
            time.sleep(order["delay"])
            os.kill(process, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        seconds = time.perf_counter() - start
        print(json.dumps({"code": code, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
