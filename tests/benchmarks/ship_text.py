"""Write the text of the built-in models that is part of the package, for the second moments.

    python tests/benchmarks/ship_text.py

To be run after a change of the sentences from whose beginnings the models go on (`facts/texts.toml`), of how many tokens
they write, or of the models. Files of other texts are removed. Prints each file with its bytes and the seconds it took.
"""

from __future__ import annotations

import time

from amnesia.directions.bystanders import MomentSettings, bystanders_of
from amnesia.directions.samples import FOLDER, own_text, ship, shipped_text, weights_digest
from amnesia.live.loading import load
from amnesia.sources.built_in import BUILT_IN
from amnesia.sources.resolve import resolve


def main() -> None:
    """Write one file for each model that has none."""
    wanted = set()
    for name in BUILT_IN:
        live = load(resolve(name).folder, name)
        read, digest = bystanders_of(live, MomentSettings()), weights_digest(live)
        path = shipped_text(read.beginnings, read.n_following, digest)
        wanted.add(path)
        if not path.exists():
            began = time.perf_counter()
            ship(path, name, list(own_text(live, read.beginnings, read.n_following, digest)))
            print(f"{name}: {path.name}, {path.stat().st_size} bytes, {time.perf_counter() - began:.0f} s")
    for path in FOLDER.glob("*.safetensors"):
        if path not in wanted:
            path.unlink()
            print(f"removed {path.name}")


if __name__ == "__main__":
    main()
