"""A progress display without a terminal."""

import contextlib


class Silent:
    """Keeps the lines that the package says instead of printing them."""

    def __init__(self):
        self.lines = []

    def notice(self, line):
        self.lines.append(line)

    @contextlib.contextmanager
    def task(self, line, n_bytes=None):
        self.lines.append(line)
        yield lambda count: None
