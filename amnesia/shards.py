"""The processes that `accelerate launch` started, as shards of one piece of work. Alone, there is one shard."""

from __future__ import annotations

import os
from datetime import timedelta

_PATIENCE = timedelta(days=7)
"""How long a process waits for the others: as long as a large atlas may take."""


class Shards:
    """Which of how many processes this is, and the device that is its own, or None where it may choose."""

    def __init__(self) -> None:
        self.index, self.count, self.device = 0, 1, None
        self._state = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            cpu = os.environ.get("ACCELERATE_USE_CPU", "").casefold() in ("1", "true", "yes")
            self._state = PartialState(cpu=cpu, timeout=_PATIENCE)
            self.index, self.count = self._state.process_index, self._state.num_processes
            self.device = str(self._state.device)

    @property
    def first(self) -> bool:
        """Whether this process reports."""
        return self.index == 0

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self._state is not None:
            self._state.wait_for_everyone()
