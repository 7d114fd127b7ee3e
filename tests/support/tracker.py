"""A progress display without a terminal."""

import contextlib
from collections import Counter

from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import PreTrainedModel


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


class Watched(Silent):
    """Keeps also how many passes a model made, and how many steps were told, under each line; None is for no line."""

    def __init__(self):
        super().__init__()
        self.passes, self.steps, self._shown = Counter(), Counter(), [None]

    @contextlib.contextmanager
    def task(self, line, n_bytes=None):
        self.lines.append(line)
        self._shown.append(line)
        self.steps[line] += n_bytes == 0  # A line that is shown with nothing to count.
        yield lambda count: self.steps.update({line: count})
        self._shown.pop()

    @contextlib.contextmanager
    def watching(self):
        """While the block lasts, passes of any model of transformers are counted."""

        def count(module, _):
            if isinstance(module, PreTrainedModel):
                self.passes[self._shown[-1]] += 1

        handle = register_module_forward_pre_hook(count)
        try:
            yield self
        finally:
            handle.remove()

    def silent(self, allowed=0):
        """Lines under which a model made more than `allowed` passes of which nothing was told; None stands for none."""
        return {line: n for line, n in self.passes.items() if n > allowed and not self.steps[line]}
