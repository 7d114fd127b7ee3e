"""Served models are asked the same questions as models in memory, and say the same."""

import subprocess
import sys
import threading

import pytest

from amnesia.errors import InputError, SourceError
from amnesia.live.forward import answer_logprobs, final_states, generate, readout
from amnesia.live.tokens import Continuation, encode, join
from amnesia.servers.engines import TOP
from amnesia.servers.server import N_REQUESTS, _each, connect
from support.http_server import openai_server, serving
from support.llamacpp import llamacpp_server
from support.tiny_gguf import llama_gguf
from support.tiny_text import tiny_live

PAIRS = [
    ("the capital of Japan is", "water and a house"),
    ("people in Peru like", "garden"),
    ("Question: where?\nAnswer:\n", "a kitchen"),
    ("Ünï – 東京 is", "größer 北"),
]
TEXTS = ["The story of a river and the sea.", "Once upon 東京 a time"]
# llama.cpp keeps keys and values in 16 bits.
TOLERANCE = {"vllm": 1e-4, "llamacpp": 5e-3}


@pytest.fixture(scope="module", params=["vllm", "vllm, with a first token", "llamacpp"])
def asked(request, tmp_path_factory):
    """A model in memory, the same on a server, and by how many nats a token may differ."""
    live = tiny_live(bos="first" in request.param)
    if request.param == "llamacpp":
        path = llama_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", live.model, tokenizer=live.tokenizer)
        with llamacpp_server(path) as address:
            yield live, connect(address), TOLERANCE["llamacpp"]
    else:
        with serving(openai_server(live, "tiny")) as server:
            yield live, connect(server.url), TOLERANCE["vllm"]


def test_answers_are_those_of_the_model_in_memory(asked):
    live, server, tolerance = asked
    found = server.answer_logprobs([(prompt, join(prompt, answer)) for prompt, answer in PAIRS])
    for own, answer in zip(found, answer_logprobs(live, PAIRS), strict=True):
        assert own.logprob == pytest.approx(answer.logprob, abs=10 * tolerance)
        assert own.logprob_first == pytest.approx(answer.logprob_first, abs=tolerance)
        assert own.rank == min(answer.rank, TOP)


def test_tokens_are_counted_as_the_model_is_fed(asked):
    live, server, _ = asked
    assert [server.engine.count(text) for text in TEXTS] == [len(item.ids) for item in encode(live.tokenizer, TEXTS)]


def test_the_likeliest_answer_has_rank_0(asked):
    live, server, _ = asked
    prompt = PAIRS[0][0]
    text = prompt + generate(live, [prompt], max_new_tokens=1)[0]
    assert server.answer_logprobs([(prompt, text)])[0].rank == 0


def test_greedy_continuations_are_those_of_the_model_in_memory(asked):
    live, server, _ = asked
    prompts = [prompt for prompt, _ in PAIRS]
    assert server.generate(prompts, 6) == generate(live, prompts, 6)


def test_whole_texts_are_scored_after_their_first_token(asked):
    live, server, tolerance = asked
    counts = []
    found = server.text_logprobs(TEXTS, counts.append)
    for (logprob, n_tokens), item in zip(found, encode(live.tokenizer, TEXTS), strict=True):
        (states,) = final_states(live, [Continuation(item.ids, len(item.ids) - 1)], readout(live))
        own = readout(live).logits(states).log_softmax(1)
        wanted = sum(float(own[place, token]) for place, token in enumerate(item.ids[1:]))
        assert (n_tokens, logprob) == (len(item.ids) - 1, pytest.approx(wanted, abs=10 * tolerance))
    assert counts == [1] * len(TEXTS)


def test_a_text_without_tokens_of_its_own_is_refused(asked):
    _, server, _ = asked
    with pytest.raises(InputError, match="leaves no tokens to score"):
        server.answer_logprobs([("the capital", "the capital")])


def test_a_text_that_is_longer_than_the_context_is_refused(tmp_path):
    live = tiny_live()
    path = llama_gguf(tmp_path / "tiny.gguf", live.model, tokenizer=live.tokenizer)
    with llamacpp_server(path) as address:
        server = connect(address)
        with pytest.raises(SourceError, match="start llama.cpp with more context|exceeds the available context"):
            server.text_logprobs(["The story of a river. " * 40])


def test_one_of_several_models_is_named_behind_the_address():
    live = tiny_live()
    with serving(openai_server(live, "base", "org/forgets")) as server:
        with pytest.raises(InputError, match=r"has 2 models \(base, org/forgets\): give URL#MODEL"):
            connect(server.url)
        with pytest.raises(InputError, match="has no model 'other': it has base, org/forgets"):
            connect(f"{server.url}#other")
        assert connect(f"{server.url}/v1/#org/forgets").name == "forgets"


def test_the_key_comes_from_the_environment(tmp_path, monkeypatch):
    live = tiny_live()
    path = llama_gguf(tmp_path / "tiny.gguf", live.model, tokenizer=live.tokenizer)
    with llamacpp_server(path, "open sesame") as address:
        for key in (None, "something else"):
            if key is not None:
                monkeypatch.setenv("AMNESIA_SERVER_KEY", key)
            with pytest.raises(
                SourceError, match=r"HTTP 401.*set AMNESIA_SERVER_KEY to the key that it wants"
            ) as caught:
                connect(address).generate(["Once"])
            assert key is None or key not in str(caught.value)
        monkeypatch.setenv("AMNESIA_SERVER_KEY", "open sesame")
        assert len(connect(address).generate(["Once"])) == 1


def test_several_are_asked_at_a_time_and_answered_in_their_order():
    together, steps = threading.Barrier(N_REQUESTS, timeout=30), []

    def ask(item):
        together.wait()  # Passed only by as many threads at once.
        return 10 * item

    found = _each(ask, range(2 * N_REQUESTS), steps.append)
    assert list(found) == [10 * item for item in range(2 * N_REQUESTS)] and steps == [1] * 2 * N_REQUESTS


def test_nothing_more_is_asked_after_an_error_and_nobody_is_waited_for():
    release, asked, ended = threading.Event(), [], []

    def ask(item):
        asked.append(item)
        if item == 0:
            raise SourceError("no")
        release.wait(60)
        ended.append(item)

    with pytest.raises(SourceError, match="no"):
        list(_each(ask, range(3 * N_REQUESTS), None))
    assert not ended
    release.set()
    assert len(asked) <= N_REQUESTS + 1


def test_who_is_interrupted_does_not_wait_for_a_server_that_hangs():
    code = """
import time
from amnesia.servers.server import _each
rows = _each(lambda seconds: time.sleep(seconds), [0, 600], None)
next(rows)
raise KeyboardInterrupt
"""
    found = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, timeout=120)
    assert "KeyboardInterrupt" in found.stderr
