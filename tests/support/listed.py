"""Write the names of all supported architectures, from the tables in the package, into README.md.

    python tests/support/listed.py

To be run after a change of `LAYOUTS` in `amnesia/architectures.py`, or of the tables in
`amnesia/weights/gguf/layout.py`. Prints the lines that changed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from amnesia.architectures import LAYOUTS
from amnesia.weights.gguf.layout import BY_COLUMNS, FUSED, MIXTURES

README = Path(__file__).resolve().parents[2] / "README.md"
# What stands before the names of models, and before those of GGUF files; what follows the last name stays.
_STARTS = ("- **Architectures**, by `model_type` in `config.json`: ", "  GGUF, by `general.architecture`: ")


def with_names(text: str) -> str:
    """The text of README.md with the names that the tables have now."""
    plain, mixed = (
        sorted(name for name, row in LAYOUTS.items() if (row.experts is None) == is_plain) for is_plain in (1, 0)
    )
    gguf = (
        f"{_listed(FUSED, MIXTURES)} Cells in MXFP4 and NVFP4 (negated), F16, BF16 and F32, else by `--tensor-type`: "
        f"{_names(BY_COLUMNS)}."
    )
    for start, names in zip(_STARTS, (_listed(plain, mixed), gguf), strict=True):
        text, count = re.subn(rf"^{re.escape(start)}.*$", lambda _, line=start + names: line, text, flags=re.MULTILINE)
        if count != 1:
            raise SystemExit(f"README.md has {count} lines that begin with {start!r}: expected one")
    return text


def _listed(plain: Iterable[str], mixed: Iterable[str]) -> str:
    return f"{_names(plain)}. With experts: {_names(mixed)}."


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def main() -> None:
    """Write README.md anew."""
    before = README.read_text(encoding="utf-8")
    after = with_names(before)
    README.write_text(after, encoding="utf-8")
    print(*difflib.unified_diff(before.splitlines(), after.splitlines(), "before", "after", lineterm="", n=0), sep="\n")


if __name__ == "__main__":
    main()
