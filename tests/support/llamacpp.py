"""llama.cpp's own server in a process of its own, from the wheel `xllamacpp`."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_PROGRAM = """
import sys
import xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path = sys.argv[1]
settings.port = 0  # Any that is free.
settings.n_ctx, settings.n_parallel, settings.warmup = 2048, 2, False
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
if sys.argv[2:]:
    settings.api_keys = sys.argv[2:]
server = xllamacpp.Server(settings)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def llamacpp_server(model: Path, *keys: str) -> Iterator[str]:
    """The address of a server that has `model`, a GGUF file, and wants one of `keys`; skips where there is no wheel."""
    pytest.importorskip("xllamacpp")
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, model, *keys],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), "llama.cpp has refused the file"
        yield address
    finally:
        process.kill()
        process.wait()
