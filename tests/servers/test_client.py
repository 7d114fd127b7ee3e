"""What servers refuse, leave out or make up ends in one line."""

import contextlib
import socket
import threading
import time

import pytest

from amnesia.errors import InputError, SourceError
from amnesia.servers import client
from amnesia.servers.client import KEY_VARIABLE, Address, Client
from amnesia.servers.server import connect
from support.http_server import completion, openai_server, serving
from support.tiny_text import tiny_live

MODELS = {"data": [{"id": "tiny"}]}


@pytest.fixture(scope="module")
def live():
    return tiny_live()


def served(live, change):
    """A server whose completions are changed by a function before they are sent."""
    honest = openai_server(live, "tiny")

    def answer(path, body):
        return (200, change(body, completion(live, body))) if path == "/v1/completions" else honest(path, body)

    return serving(answer)


@pytest.mark.parametrize(
    ("text", "url", "model"),
    [
        ("http://localhost:8000", "http://localhost:8000", None),
        ("https://gpu.example/v1/", "https://gpu.example", None),
        ("http://10.0.0.7:80/prefix/v1#org/name:1", "http://10.0.0.7:80/prefix", "org/name:1"),
        ("http://[::1]:8000/#a%20b", "http://[::1]:8000", "a b"),
    ],
)
def test_addresses(text, url, model):
    assert Address.parse(text) == Address(url, model)


@pytest.mark.parametrize("text", ["localhost:8000", "ftp://host", "http://", "http://host:x", "http://host/?a=1", ""])
def test_what_is_no_address(text):
    with pytest.raises(InputError, match=r"is no address: expected http://HOST:PORT"):
        Address.parse(text)


def test_an_address_holds_no_credentials():
    with pytest.raises(InputError, match=f"put the key into {KEY_VARIABLE}") as caught:
        Address.parse("http://ada:lovelace@host:8000")
    assert "lovelace" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1", True),
        ("http://localhost", True),
        ("http://[::1]:1", True),
        ("http://10.0.0.1", False),
        ("https://host", False),
    ],
)
def test_proxies_are_for_other_machines(url, here):
    assert Client(url)._session.trust_env is not here


def test_where_nobody_listens():
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SourceError, match=rf"no server answers at {address} \(.*[Cc]onnection refused\): start it"):
            connect(address)


def test_a_server_that_takes_too_long(monkeypatch):
    monkeypatch.setattr(client, "READ_SECONDS", 0.05)

    def answer(path, body):
        time.sleep(0.3)
        return 200, MODELS

    with serving(answer) as server, pytest.raises(SourceError, match=r"did not answer /v1/models within 0.05 s"):
        connect(server.url)


def test_a_reply_without_end_is_not_read(monkeypatch):
    monkeypatch.setattr(client, "MAX_REPLY", 2**20)
    with serving(lambda path, body: (200, b" " * 2**22)) as server:
        with pytest.raises(SourceError, match="sends more than 1 MB in one reply"):
            connect(server.url)


def test_a_reply_that_is_broken_off():
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listening:

        def answer():
            connection, _ = listening.accept()
            with connection:
                connection.recv(2**16)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(SourceError, match="broke off its reply to /v1/models: see what its log says"):
            connect(f"http://127.0.0.1:{listening.getsockname()[1]}")
        thread.join()


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((200, b"<html>"), "is not valid JSON .*expected an OpenAI-compatible server"),
        ((200, [1]), "has list as the reply, expected an object"),
        ((200, {"data": [{"name": "x"}]}), "has None as data.id, expected a non-empty string"),
        ((200, {"data": []}), "serves no model: let it load one, or give another server"),
        (
            (404, {"detail": "Not Found"}),
            r"refuses /v1/models \(HTTP 404: .*Not Found.*: see what its log says, or give the address",
        ),
        ((302, b""), r"\(HTTP 302: without a word\): it leads to nowhere, which is not followed; give the address of"),
        ((503, b"loading\nthe model"), r"HTTP 503: loading the model\)"),
    ],
)
def test_other_servers(reply, message):
    with serving(lambda path, body: reply) as server, pytest.raises((SourceError, InputError), match=message) as caught:
        connect(server.url)
    assert "\n" not in str(caught.value)


def test_nobody_else_is_asked_and_no_key_is_handed_on(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "open sesame")
    with serving(lambda path, body: (200, MODELS)) as other:
        with serving(lambda path, body: (307, f"{other.url}{path}".encode())) as server:
            with pytest.raises(SourceError, match="HTTP 307: .*which is not followed"):
                connect(server.url)
    assert len(server.headers) == 1 and not other.headers


def test_the_key_is_sent_and_never_shown(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "open sesame")
    with serving(lambda path, body: (401, b"wrong key: open sesame")) as server:
        with pytest.raises(SourceError, match=f"set {KEY_VARIABLE}") as caught:
            connect(server.url)
    assert "sesame" not in str(caught.value)
    assert [row["Authorization"] for row in server.headers] == ["Bearer open sesame"]


def test_a_key_with_other_characters_is_refused_unshown(monkeypatch):
    with serving(lambda path, body: (401, b"no")) as server:
        monkeypatch.setenv(KEY_VARIABLE, "open sesame\r\n")
        with pytest.raises(SourceError):
            connect(server.url)
        assert [row["Authorization"] for row in server.headers] == ["Bearer open sesame"]
        monkeypatch.setenv(KEY_VARIABLE, "open\nsesame")
        with pytest.raises(InputError, match=f"{KEY_VARIABLE} holds characters that no key has") as caught:
            connect(server.url)
    assert "sesame" not in str(caught.value)


def test_nothing_from_netrc_is_sent(monkeypatch, tmp_path):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ada password lovelace", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(client, "is_here", lambda url: False)
    with serving(lambda path, body: (200, MODELS if body == {} else {})) as server:
        with pytest.raises(SourceError):
            connect(server.url)
    assert server.headers
    assert not any("Authorization" in row for row in server.headers)


def without(*names):
    def change(body, reply):
        for name in names:
            reply["choices"][0].pop(name)
        return reply

    return change


def no_echo(body, reply):
    """llama.cpp behind a proxy: only what was generated is there."""
    logprobs = reply["choices"][0]["logprobs"]
    if logprobs:
        reply["choices"][0]["logprobs"] = {name: rows[-1:] for name, rows in logprobs.items()}
    return reply


def each(function):
    """The log-probabilities that a server gives, changed."""

    def change(body, reply):
        if rows := reply["choices"][0]["logprobs"]:
            rows["token_logprobs"] = [None if own is None else function(own) for own in rows["token_logprobs"]]
            rows["top_logprobs"] = [
                top and {name: function(own) for name, own in top.items()} for top in rows["top_logprobs"]
            ]
        return reply

    return change


def shifting():
    state = [0.0]

    def function(own):
        state[0] += 1.0
        return own - state[0]

    return each(function)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("logprobs"),
            "has None as logprobs, expected an object: expected the log-probabilities of a prompt; serve",
        ),
        (no_echo, r"has 1 log-probabilities for a prompt of \d+ tokens"),
        (each(lambda own: own + 9), "cannot be used: one is above 0"),
        (each(lambda own: own / 9), "likeliest tokens have a probability of .* together, expected 1 at most"),
        (each(lambda own: 0.0 if own < -9 else -1e-6), "likeliest tokens have a probability of"),
        (each(lambda own: "high"), "has 'high' as logprobs"),
        (each(lambda own: 1e300), "cannot be used: one is above 0"),
        (lambda body, reply: {**reply, "choices": []}, r"has None as choices\[0\], expected an object"),
        (lambda body, reply: {**reply, "usage": [1]}, "has list as usage, expected an object"),
        (shifting(), "asked twice, they differ by .* nats, expected 0.5 at most"),
    ],
)
def test_log_probabilities_that_are_none(live, change, message):
    with served(live, change) as server, pytest.raises(SourceError, match=message):
        connect(server.url)


def test_log_probabilities_of_what_was_asked_for(live):
    def certain(body, reply):
        if rows := reply["choices"][0]["logprobs"]:
            rows["token_logprobs"] = [None, *[0.0] * (len(rows["token_logprobs"]) - 1)]
            rows["top_logprobs"] = [None, *[{"a": 0.0}] * (len(rows["top_logprobs"]) - 1)]
        return reply

    with served(live, certain) as server, pytest.raises(SourceError, match="a text without sense is certain"):
        connect(server.url)
