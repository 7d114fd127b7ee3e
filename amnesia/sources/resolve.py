"""Where models come from: a folder, a `.gguf` file, a Hub repository, or a model that is built in by name.

Everything ends as a local folder with safetensors weights. What has to be fetched or converted is made once, in the
cache folder, under a temporary name, and renamed when it is complete.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import re
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from amnesia.architectures import configured
from amnesia.domain import ModelRef, check_place, is_gguf_name, is_gguf_path, user_path
from amnesia.errors import CheckpointError, InputError, LayoutError, SourceError
from amnesia.files.companions import (
    ADAPTER_NAMES,
    BASE_FOLDER,
    LORA_NAME,
    MANIFEST_NAME,
    PAGE_NAME,
    PATTERNS,
    REPORT_NAME,
    UNDO_NAME,
    output_instead,
    whole_output,
)
from amnesia.files.disk import check_plain, check_settled, git_hash, hash_file, read_small
from amnesia.guessing import ASKED
from amnesia.sources.built_in import BUILT_IN, built_in
from amnesia.sources.conversion import check_gguf_file, from_gguf
from amnesia.sources.hub_errors import hub_errors, without_patterns
from amnesia.sources.ranges import fetched_part
from amnesia.sources.source import ModelSource, Notice, check_weights
from amnesia.sources.views import TEXTS
from amnesia.weights.configuration import read_config
from amnesia.weights.manifest import Base, Manifest, declared_files
from amnesia.weights.manifest_file import read_manifest
from amnesia.weights.parts import part_names
from amnesia.weights.safetensors import INDEX_FILE, MAX_INDEX, SINGLE_FILE, location_of, read_weight_files

POPQA = ("akariasai/PopQA", "test.tsv")
# A page of the Hub, as it is copied from a browser.
_PAGE = re.compile(
    r"(?:hf://|(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/)(?P<kind>datasets/)?(?P<repo>[\w.-]+/[\w.-]+)"
    r"(?:/(?:tree|blob|resolve)/(?P<revision>[\w.-]+)(?:/(?P<file>[^?#]+))?)?/?(?:[?#].*)?"
)
# The Hub keeps larger files in another storage, under their sha256.
_MAX_GIT = 2**27
# Beside the companions of the weights: weights, adapters, and what an edit has put there. Other shards are fetched by
# the names in the index; a repository may hold the same weights once more in other files.
HUB_PATTERNS = [
    *PATTERNS, SINGLE_FILE, INDEX_FILE, *ADAPTER_NAMES,
    MANIFEST_NAME, UNDO_NAME, REPORT_NAME, PAGE_NAME, f"{BASE_FOLDER}/*",
]  # fmt: skip


# The star of a pattern also stands for a slash; below the top these are twins of what is there.
_TWINS = ["*/*.model", "*/tokenizer.*", "*/*.tiktoken", "*/vocab.*"]


def resolve(
    model: ModelRef | Path | str,
    notice: Notice = lambda _: None,
    *,
    also: Collection[str] = (),
    n_layers: int | None = None,
) -> ModelSource:
    """The local folder of `model`: a built-in name, a folder, a `.gguf` path, or `repo_id[@revision]`.

    `notice` is told, in one line, what takes long. Of a repository only the files that a model needs are fetched, or
    that its first `n_layers` layers need, and those named in `also`, as far as it has them. Raises SourceError when the
    model cannot be had.
    """
    # A guessed layout is proven on the whole model.
    n_layers = None if ASKED.get() else n_layers
    return replace(_resolved(model, notice, also, n_layers), n_layers=n_layers)


def _resolved(model: ModelRef | Path | str, notice: Notice, also: Collection[str], n_layers: int | None) -> ModelSource:
    spec, revision = (model.name, model.revision) if isinstance(model, ModelRef) else (str(model), None)
    _refuse_address(spec)
    path = user_path(spec)
    if revision and (spec in BUILT_IN or is_gguf_name(spec) or path.exists()):
        raise SourceError(f"{spec} has no revision {revision!r}: only models on the Hub have revisions, drop it")
    if _is_built_in(spec, path):
        return built_in(spec, notice)
    if is_gguf_path(spec):
        return from_gguf(path, notice)
    if path.is_dir():
        path = whole_output(path)
        spec = spec if path == user_path(spec) else str(path)
        check_settled(path)
        check_plain(path)
        if (path / LORA_NAME).is_file():
            return ModelSource(path, ModelRef(spec))
        inner = (found for pattern in ("*/config.json", "*/*/config.json") for found in path.glob(pattern))
        check_weights([item.relative_to(path).as_posix() for item in (*path.iterdir(), *inner)], spec)
        return ModelSource(path, ModelRef(spec))
    if path.exists():
        raise SourceError(f"{spec} is a single file: expected a model folder, a .gguf file, or a Hub id")
    ref = hub_ref(spec)
    return _from_hub(ref if ref.revision else replace(ref, revision=revision), also, n_layers)


def resolve_texts(spec: str, notice: Notice = lambda _: None) -> ModelSource:
    """A model of which no weights are read: the folder of its configuration, tokenizer and template, or its `.gguf`.

    Of a repository nothing else is fetched, and a folder needs no weights. Raises SourceError.
    """
    _refuse_address(spec)
    path = user_path(spec)
    if _is_built_in(spec, path):
        return built_in(spec, notice)
    if is_gguf_path(spec):
        check_gguf_file(path)
        return ModelSource(path.parent, ModelRef(spec), path)
    if path.is_dir():
        path = whole_output(path)
        check_settled(path)
        return ModelSource(path, ModelRef(spec))
    if path.exists():
        raise SourceError(f"{spec} is a single file: expected a model folder, a .gguf file, or a Hub id")
    ref = hub_ref(spec)
    folder = _check_any(_fetch_files(ref, TEXTS), ref)
    return ModelSource(folder, replace(ref, revision=folder.name))


def _is_built_in(spec: str, path: Path) -> bool:
    """Whether `spec` means a built-in model: a model folder of that name comes first, what is no model is refused."""
    if spec not in BUILT_IN or not path.exists():
        return spec in BUILT_IN
    if not (path / "config.json").exists() and whole_output(path) == path:
        raise SourceError(f"{spec} here is no model and hides the built-in one: rename it, or start elsewhere")
    return False


def is_fetched(name: str) -> bool:
    """Whether `resolve` takes the file `name` of a repository without being asked for it, or finds it in the index."""
    return name.endswith(".safetensors") or any(fnmatch.fnmatchcase(name, pattern) for pattern in HUB_PATTERNS)


def hub_ref(spec: str) -> ModelRef:
    """Repository and revision of `repo_id[@revision]`; raises SourceError for anything else."""
    _refuse_address(spec)
    if (output := output_instead(user_path(spec))) is not None:
        raise SourceError(f"model {spec!r} does not exist: the output has one format and is {output} itself; give that")
    ref = ModelRef.parse(spec)
    if not ref.may_be_on_hub:
        raise SourceError(
            f"model {spec!r} does not exist: expected a folder, a .gguf file, a Hub id, or one of {', '.join(BUILT_IN)}"
        )
    return ref


def declared(model: ModelRef) -> ModelRef:
    """A model as a manifest names it: without the path to a folder or file, which is never called as a built-in one.

    Raises InputError for a name that is not UTF-8, of a folder or file.
    """
    short = model.portable
    check_place(short.name)
    is_here = short != model or Path(model.name).exists()
    return ModelRef(f"./{short.name}") if short.name in BUILT_IN and is_here else short


def recorded(base: ModelRef) -> str:
    """The base of an output as `resolve` takes it; raises InputError where the manifest does not say where it lies."""
    if not has_place(base):
        raise InputError(
            f"{base} was a folder or file of the machine on which it was edited: give its place with --base (in "
            "Python: base=...)"
        )
    return str(base)


def has_place(ref: ModelRef) -> bool:
    """Whether a name in a manifest says where the model is."""
    return ref.revision is not None or ref.name in BUILT_IN


def named_base(manifest: Manifest) -> Base:
    """The newest base in the history of an output whose name says where it is; of none, that of the newest edit."""
    return next((step.base for step in manifest.history() if has_place(step.base.ref)), manifest.base)


def is_local(spec: str) -> bool:
    """Whether `spec` means a folder, a file, or a built-in model, and not a repository."""
    path = user_path(spec)
    return spec in BUILT_IN or is_gguf_name(spec) or path.exists()


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
    _refuse_address(spec)
    if name is not None and not is_local(spec):
        return _file_from_hub(hub_ref(spec), name)
    path = user_path(spec)
    if _is_built_in(spec, path):
        return built_in(spec, notice)
    if not is_gguf_name(spec):
        raise InputError(
            f"formats gguf and gguf-lora need a .gguf model, {spec} is not one: give the path of a .gguf file"
        )
    check_gguf_file(path)
    return ModelSource(path.parent, ModelRef(spec), path)


def _from_hub(ref: ModelRef, also: Collection[str], n_layers: int | None) -> ModelSource:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if n_layers is not None:
        snapshot = _fetch_files(ref, [pattern for pattern in HUB_PATTERNS if pattern != SINGLE_FILE], also)
        if (part := fetched_part(snapshot, ref, n_layers)) is not None:
            return ModelSource(part, replace(ref, revision=snapshot.name))
        ref = replace(ref, revision=snapshot.name)
    folder = _check_any(_fetch_files(ref, HUB_PATTERNS, also), ref)
    if further := {*_shards(folder, n_layers)} - {path.name for path in folder.iterdir()}:
        folder = _fetch_files(replace(ref, revision=folder.name), (), further)
    files = [item.name for item in folder.iterdir()]
    if not any(name.endswith(".safetensors") for name in files):
        with contextlib.suppress(HfHubHTTPError, OSError):
            files = HfApi().list_repo_files(ref.name, revision=ref.revision)
    check_weights(files, str(ref))
    # The snapshot folder is named after the commit, which says more than a branch does.
    return ModelSource(folder, replace(ref, revision=folder.name))


def _check_any(folder: Path, ref: ModelRef) -> Path:
    """The folder of what was fetched of a model; raises SourceError, with what to give instead, where it is nothing."""
    from huggingface_hub import HfApi

    if not folder.is_dir():
        with hub_errors(str(ref)):
            check_weights(HfApi().list_repo_files(ref.name, revision=ref.revision), str(ref))
        raise SourceError(f"{ref} on the Hub has no file of a tokenizer: give the model, or a folder")
    return folder


def _shards(folder: Path, n_layers: int | None) -> tuple[str, ...]:
    """The files that the index of a model names, if it has one that can be read; who reads the model says why not.

    With `n_layers`, those that hold something of these layers.
    """
    if not (folder / INDEX_FILE).is_file():
        return ()
    with contextlib.suppress(CheckpointError, LayoutError, OSError):
        location = location_of(str(folder), read_small(folder / INDEX_FILE, MAX_INDEX))
        wanted = location.keys()
        if n_layers is not None:
            wanted = part_names(configured(read_config(folder), n_layers), wanted)
        return tuple(dict.fromkeys(file for name, file in location.items() if name in wanted))
    return ()


def _file_from_hub(ref: ModelRef, name: str) -> ModelSource:
    split = re.fullmatch(r"(.+)-\d{5}-of-(\d{5}\.(?i:gguf))", name)
    pattern = glob.escape(name)
    if split is not None:
        pattern, name = f"{glob.escape(split[1])}-?????-of-{split[2]}", f"{split[1]}-00001-of-{split[2]}"
    folder = _fetch_files(ref, [pattern], [MANIFEST_NAME])
    if not (folder / name).is_file():
        raise SourceError(f"{ref.name} has no file {name}: give the path of the .gguf file that was edited")
    # Of a model that is itself edited, that says by which edit, and what else belongs to it.
    if (folder / MANIFEST_NAME).is_file() and (manifest := read_manifest(folder)).format == "gguf":
        there = replace(ref, revision=folder.name)
        folder = _fetch_files(there, [f"{BASE_FOLDER}/*"], declared_files(manifest))
    return ModelSource(folder, replace(ref, revision=folder.name), folder / name)


def _fetch_files(
    ref: ModelRef, patterns: Collection[str], names: Collection[str] = (), kind: str | None = None
) -> Path:
    """The files of a repository that match, or have one of the names, in the client's cache; raises SourceError.

    Where there is none, the folder may not be there. `kind` is what the Hub calls a repository that is no model.
    """
    from huggingface_hub import snapshot_download

    started = time.time()
    with hub_errors(str(ref)):
        # A name may hold characters that mean something in a pattern.
        wanted = [*patterns, *map(glob.escape, names)]
        ignored = None if names else _TWINS
        with without_patterns():
            folder = Path(
                snapshot_download(
                    ref.name, repo_type=kind, revision=ref.revision, allow_patterns=wanted, ignore_patterns=ignored
                )
            )
        _check_fetched(folder, str(ref), started)
    return folder


def _check_fetched(folder: Path, shown: str, since: float) -> None:
    """Raises SourceError when a file that has been fetched `since` then is not the one that the Hub announced.

    The client looks at sizes only. In its cache a file lies under the hash that was announced for it (where there are
    links to files), sha256 for large ones and git's for others.
    """
    damaged = []
    for path in sorted(folder.rglob("*")):
        # The blob may be a link itself, to where the cache keeps the files of all repositories under other names.
        blob = path.parent / path.readlink() if path.is_symlink() else path
        # File systems keep times less exactly than the clock does.
        if not path.is_file() or blob.stat().st_mtime < since - 2:
            continue
        if re.fullmatch("[0-9a-f]{64}", blob.name):
            intact = hash_file(blob) == blob.name
        else:
            intact = (
                re.fullmatch("[0-9a-f]{40}", blob.name) is None or git_hash(read_small(blob, _MAX_GIT)) == blob.name
            )
        if not intact:
            # It would be taken for good the next time.
            path.unlink()
            blob.resolve().unlink(missing_ok=True)
            blob.unlink(missing_ok=True)
            damaged.append(path.name)
    if damaged:
        raise SourceError(f"{damaged[0]} of {shown} arrived with another hash than the Hub announced: try again")


def find_popqa(spec: str | None) -> Path:
    """The PopQA table that `spec` names: a file, or the upstream data set, which is also what None stands for.

    The upstream table is fetched from the Hub once and kept in its cache. Raises SourceError.
    """
    path = None if spec is None else user_path(spec)
    if path is not None and (spec != POPQA[0] or path.exists()):
        return path
    from huggingface_hub import hf_hub_download

    with hub_errors("/".join(POPQA), "give a PopQA file with --popqa"):
        return Path(hf_hub_download(*POPQA, repo_type="dataset"))


def find_data_set(spec: str, patterns: Collection[str], example: str) -> tuple[Path, ModelRef | None]:
    """The folder of a data set: one here, or of a Hub id (`owner/name@revision`) the files that match, in its cache.

    Beside it stands the id with the commit that was fetched, None for a folder here. Raises SourceError; `example` is
    the name of a file that is looked for.
    """
    _refuse_address(spec, "data set")
    path, ref = user_path(spec), ModelRef.parse(spec)
    if path.exists() or not (ref.may_be_on_hub and "/" in ref.name):
        return path, None
    folder = _fetch_files(ref, patterns, kind="dataset")
    if not folder.is_dir():
        remedy = f"give one with files such as {example}"
        raise SourceError(f"{ref} on the Hub has none of the files that are read: {remedy}")
    return folder, replace(ref, revision=folder.name)


def _refuse_address(spec: str, what: str = "model") -> None:
    """Raise SourceError for what was copied from a browser, and say what the Hub calls it."""
    page = _PAGE.fullmatch(spec)
    if page is None and "://" not in spec:
        return
    if page is not None and page["kind"] and what == "model":
        raise SourceError(f"{spec} is the address of a data set, not a model: give a model")
    repo, revision, file = (None,) * 3 if page is None else page.group("repo", "revision", "file")
    remedy = f"download the {what}, and give its folder{' or .gguf file' * (what == 'model')}"
    if repo and what == "model" and is_gguf_name(file or ""):
        remedy = f"fetch the file with `hf download {repo} {file}`, and give its path"
    elif repo:
        remedy = f"give the Hub id, {repo}" + (f"@{revision}" if revision and revision != "main" else "")
    raise SourceError(f"{spec} is an address, not a {what}: {remedy}")
