"""Vectors as values: frozen, comparable and small in JSON, however long they are."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Vector:
    """Float32 numbers, little-endian, as bytes (`raw`), so that equal vectors are equal bit for bit."""

    raw: bytes

    @classmethod
    def of(cls, numbers: ArrayLike) -> Vector:
        """The numbers (n,), each rounded to float32."""
        import numpy as np

        return cls(np.asarray(numbers, "<f4").tobytes())

    @classmethod
    def from_text(cls, text: str) -> Vector:
        """Read what `text` gives; raises ValueError for anything else."""
        try:
            raw = base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise ValueError(f"is not Base64 ({error})") from None
        if len(raw) % 4:
            raise ValueError(f"has {len(raw)} bytes, which are no float32 numbers")
        return cls(raw)

    @property
    def text(self) -> str:
        """Base64 of the bytes."""
        return base64.b64encode(self.raw).decode("ascii")

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return len(self.raw) // 4

    @property
    def array(self) -> np.ndarray:
        """The numbers, float32 (n,), read-only."""
        import numpy as np

        return np.frombuffer(self.raw, "<f4")

    @property
    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        import numpy as np

        return bool(np.isfinite(self.array).all())
