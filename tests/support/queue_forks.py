"""A process that works on a queue in children, which begin with all modules loaded, and kills some of them.

Run as a script with the file of the questions on general ability. It reads a JSON object per line, {"list", "output",
"delays"}, forks a child for each delay, kills it so many seconds later unless that is null, and answers, when all have
ended, with {"codes", "said", "seconds"}: their exit codes, all lines that they said, and the time that it took.
"""

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from amnesia.facts import ability
from amnesia.progress import Silent
from amnesia.queue.listed import read_list
from amnesia.queue.work import run_queue
from support.smollm2 import FEW_CHARACTERS, brief_texts
from support.warm import warm


class Saying(Silent):
    def __init__(self, descriptor):
        self.descriptor = descriptor

    def notice(self, line):
        os.write(self.descriptor, f"{line}\n".encode())


def child(order, descriptor):
    """Do the work; never returns."""
    try:
        run_queue(read_list(Path(order["list"])), None, None, Path(order["output"]), Saying(descriptor))
    except BaseException as error:
        sys.stderr.write(f"{error!r}\n")
        os._exit(4)
    os._exit(0)


def main():
    """Answer orders until there are no more."""
    torch.set_num_threads(1)
    warm()
    for line in sys.stdin:
        order, start = json.loads(line), time.monotonic()
        with tempfile.TemporaryFile() as said:
            descriptor = os.open(f"/dev/fd/{said.fileno()}", os.O_WRONLY | os.O_APPEND)
            children = [os.fork() or child(order, descriptor) for _ in order["delays"]]
            for delay, process in sorted(
                (d, p) for d, p in zip(order["delays"], children, strict=True) if d is not None
            ):
                time.sleep(max(0.0, start + delay - time.monotonic()))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in children]
            os.close(descriptor)
            said.seek(0)
            lines = said.read().decode().splitlines()
        print(json.dumps({"codes": codes, "said": lines, "seconds": time.monotonic() - start}), flush=True)


if __name__ == "__main__":
    ability._FILE = Path(sys.argv[1])
    with brief_texts(FEW_CHARACTERS):
        main()
