"""The tokenizer and the chat template of a model, for which no weights are read."""

import pytest

from amnesia.errors import InputError, SourceError
from amnesia.live.chat_form import chat_format
from amnesia.live.loading import load_tokenizer
from amnesia.sources.resolve import resolve, resolve_texts
from support.folders import files_in
from support.tiny import tiny_model
from support.tiny_gguf import llama_gguf
from support.tiny_text import VOCAB_SIZE, tiny_tokenizer

TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", vocab_size=VOCAB_SIZE)


@pytest.fixture(scope="module")
def talking(model, tmp_path_factory):
    """A model with a chat template in a file of its own."""
    folder = tmp_path_factory.mktemp("models") / "talking"
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def said(spec):
    chat = chat_format(load_tokenizer(resolve_texts(str(spec))))
    assert chat is not None
    return chat("Hello there")


EXPECTED = "[user] Hello there\n[assistant] "


def test_of_a_repository_no_weights_are_fetched(talking, hub):
    files = files_in(talking)
    hub.add_repo("ada/talking", files)
    assert said("ada/talking") == EXPECTED
    assert not hub.lines("*safetensors*")
    assert hub.down < 2 * sum(len(content) for name, content in files.items() if not name.endswith(".safetensors"))


@pytest.mark.parametrize("left_out", ["*.safetensors", "*config.json"])
def test_a_folder_needs_no_weights(talking, tmp_path, left_out):
    names = {path.name for path in talking.glob(left_out)}
    assert names
    for name, content in files_in(talking).items():
        if name not in names:
            (tmp_path / name).write_bytes(content)
    assert said(tmp_path) == EXPECTED


def test_a_gguf_is_not_converted(model, tmp_path, monkeypatch):
    monkeypatch.setenv("AMNESIA_CACHE", str(tmp_path / "cache"))
    path = llama_gguf(tmp_path / "m.gguf", model, tokenizer=tiny_tokenizer())
    found = load_tokenizer(resolve_texts(str(path)))
    text = "people in Japan like water"
    assert found(text).input_ids == tiny_tokenizer()(text).input_ids
    assert not (tmp_path / "cache").exists()


def test_what_has_no_tokenizer_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="has no usable tokenizer"):
        load_tokenizer(resolve_texts(str(tmp_path)))
    with pytest.raises(SourceError, match="does not exist: give the path of a .gguf file"):
        resolve_texts(str(tmp_path / "no.gguf"))


@pytest.mark.parametrize("find", [resolve, resolve_texts])
def test_a_repository_of_a_gguf_alone_is_refused_with_what_to_give(hub, find):
    hub.add_repo("ada/g", {"m.gguf": b"0" * 99})
    with pytest.raises(SourceError, match="ada/g has no safetensors weights, but a GGUF: give the path of m.gguf"):
        find("ada/g")
