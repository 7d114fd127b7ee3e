"""Which files of a model folder go along with its weights, and which files of an output this package writes itself.

A list of what is copied, never one of what is not: whatever else lies in the folder (states of optimizers, weights of
other frameworks, archives, a second set of shards, secrets) may hold what was to be forgotten, or is nobody's business.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from amnesia.domain import ADAPTERS, FORMATS
from amnesia.files.disk import MANIFEST_NAME, read_small
from amnesia.files.lfs import check_no_pointer

REPORT_NAME = "report.json"
PAGE_NAME = "report.html"
# Originals of what an edit changed that cannot be computed back.
UNDO_NAME = "amnesia-undo.safetensors"
# Files of the base whose names the output needs for itself are kept in this folder.
BASE_FOLDER = "amnesia-base"
MODELFILE_NAME = "Modelfile"
README_NAME = "README.md"
# The Hub writes this file into every repository; it tells git how to store files and is no part of the model.
REPOSITORY_FILE = ".gitattributes"
_WRITTEN = (MANIFEST_NAME, UNDO_NAME, REPORT_NAME, PAGE_NAME, MODELFILE_NAME, README_NAME)
ADAPTER_NAMES = ("adapter_config.json", "adapter_model.safetensors")
# The LoRA file of llama.cpp.
LORA_NAME = "lora.gguf"
# Licences and what goes with them, by their names in lower case, as repositories of models have them; each name also
# with these endings. Whole names: what only begins so may be a key.
_LEGAL = frozenset(
    name + ending
    for name in (
        "license licence license-model license_model model_license license-code license_code license-apache "
        "license-apache-2.0 license-mit notice notices third_party_notices third-party-notices thirdpartynotices "
        "use_policy usage_policy acceptable_use_policy copying copying.lesser"
    ).split()
    for ending in ("", ".txt", ".md", ".rst")
)
# Text that transformers, vLLM and others read beside the weights, and that people read on the Hub.
_TEXTS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.[0-9]*.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "vocab.bpe",
    "merges.txt",
    "tekken.json",
    "*.tiktoken",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "README.md",
    REPOSITORY_FILE,
)
CONFIGURATIONS = tuple(name for name in _TEXTS if name.endswith("config.json"))
"""Those of them in which settings may name other files."""
# Vocabularies of SentencePiece, which are no text.
_PIECES = ("*.model", "tokenizer.model.*")
# All of these as one who fetches a model asks for them, licences in any case; the star then stands for a slash, too.
PATTERNS = (
    *_TEXTS,
    *_PIECES,
    *("".join(f"[{char}{char.upper()}]" if char.isalpha() else char for char in name) for name in sorted(_LEGAL)),
)
_WEIGHTS = (
    ".safetensors .gguf .bin .pt .pth .ckpt .pkl .npy .npz .h5 .msgpack .ot .onnx .onnx_data .tflite .mlmodel "
    ".zip .tar .gz .tgz .xz .zst .bz2 .7z"
).split()  # fmt: skip
_PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".pdf")
# An edit that is read as files of a whole model needs no other model.
_WHOLE_FIRST = sorted(FORMATS, key=lambda name: name in ADAPTERS)
_MAX_TEXT = 2**28
_MAX_LEGAL = 2**20


def output_instead(path: Path) -> Path | None:
    """The output that is meant by a folder of it named after a format, which it does not have; or None."""
    is_output = path.name in FORMATS and (path.parent / MANIFEST_NAME).is_file()
    return path.parent if is_output and not path.exists() else None


def whole_output(folder: Path) -> Path:
    """The output that stands for all formats that a run wrote, a whole model if there is one; or the folder itself."""
    if (folder / MANIFEST_NAME).exists() or (folder / "config.json").exists():
        return folder
    return next((folder / name for name in _WHOLE_FIRST if (folder / name / MANIFEST_NAME).is_file()), folder)


def gguf_output(folder: Path) -> Path | None:
    """The one `.gguf` file that is the model of an output of format "gguf"; None for other folders."""
    found = sorted(folder.glob("*.gguf"))
    is_output = (folder / MANIFEST_NAME).is_file() and not (folder / "config.json").exists()
    return found[0] if is_output and len(found) == 1 and found[0].name != LORA_NAME else None


def is_written(name: str) -> bool:
    """Whether an output of this package may hold a file of this name that is not of its base, or keep one of it."""
    while name.startswith(f"{BASE_FOLDER}/"):
        name = name.removeprefix(f"{BASE_FOLDER}/")
    return name in _WRITTEN or is_legal(name)


def is_legal(name: str) -> bool:
    """Whether a file is called as a licence or a notice is."""
    return name.lower() in _LEGAL


def _is_weights(name: str) -> bool:
    return Path(name.lower()).suffix in _WEIGHTS


def is_companion(name: str) -> bool:
    """Whether a file of this name goes along with the weights of a model."""
    return is_legal(name) or (not _is_weights(name) and any(_matches(name, pattern) for pattern in (*_TEXTS, *_PIECES)))


def _matches(name: str, pattern: str) -> bool:
    # The star of a pattern also stands for a slash.
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def is_copied(folder: Path, name: str) -> bool:
    """Whether a file goes along by its name and is what it is called: a text, or a vocabulary of SentencePiece.

    Weights under such a name do not. Raises OSError, and CheckpointError for a pointer of Git LFS.
    """
    if not is_companion(name):
        return False
    limit = _MAX_LEGAL if is_legal(name) else _MAX_TEXT
    if (folder / name).stat().st_size > limit:
        return False
    content = read_small(folder / name, limit)
    check_no_pointer(str(folder / name), content)
    if any(_matches(name, pattern) for pattern in _PIECES):
        return content.startswith(b"\n")  # Its first field is the list of pieces.
    return is_text(content)


def may_hold_weights(folder: Path, name: str) -> bool:
    """Whether a file may hold weights, or makes others change them: an adapter, or neither text nor a picture.

    Raises OSError.
    """
    path = Path(name.lower())
    # transformers puts an adapter that lies beside the weights on the model.
    if path.name in ADAPTER_NAMES or _is_weights(name):
        return True
    if path.suffix in _PICTURES:
        return False
    size = (folder / name).stat().st_size
    return size > _MAX_LEGAL or not is_text(read_small(folder / name, _MAX_LEGAL))


def is_text(content: bytes) -> bool:
    """Whether bytes are UTF-8 text; weights hardly ever are."""
    if b"\0" in content:
        return False
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
