"""Where models come from, without a network: folders and `.gguf` files."""

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
from amnesia.sources.built_in import BUILT_IN
from amnesia.sources.conversion import from_gguf
from amnesia.sources.resolve import declared, recorded, resolve, resolve_file
from support.commands import done, refused
from support.folders import files_under
from support.tiny import save_tiny, tiny_model
from support.tiny_gguf import llama_gguf, write_gguf
from support.tiny_text import VOCAB_SIZE

pytestmark = pytest.mark.usefixtures("cache")


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
