"""What is asked of a server, and what its numbers mean."""

import math

import pytest

from amnesia.errors import InputError, SourceError
from amnesia.servers.client import Client
from amnesia.servers.engines import TOP, EchoEngine, LlamaCppEngine, Step, _start, check_trust
from support.http_server import serving


def asked_by(kind, ask, reply):
    """The bodies of the requests that an engine sends."""
    seen = []

    def answer(path, body):
        seen.append((path, body))
        return 200, reply

    with serving(answer) as server:
        ask(kind(Client(server.url)))
    return seen


def test_a_continuation_is_the_likeliest_whatever_the_servers_defaults_are():
    reply = {"choices": [{"text": " Paris"}], "usage": {}}
    ((path, body),) = asked_by(lambda client: EchoEngine(client, "m"), lambda engine: engine.write("In", 3), reply)
    assert path == "/v1/completions"
    assert body == {"model": "m", "prompt": "In", "max_tokens": 3, "temperature": 0, "repetition_penalty": 1}
    ((path, body),) = asked_by(
        lambda client: LlamaCppEngine(client, "m", 9), lambda engine: engine.write("In", 3), {"content": " Paris"}
    )
    assert path == "/completion"
    assert (body["temperature"], body["samplers"], body["logit_bias"]) == (0, ["temperature"], [])


def test_tokens_are_those_that_the_model_is_fed():
    reply = {"tokens": [{"id": 1, "piece": "<s>"}, {"id": 7, "piece": [195]}]}
    ((path, body),) = asked_by(lambda client: LlamaCppEngine(client, "m", 9), lambda engine: engine._tokens("a"), reply)
    assert path == "/tokenize" and body["add_special"] is True


@pytest.mark.parametrize(
    ("logprob", "top", "rank"),
    [(-0.1, (-0.1, -3.0), 0), (-1.0, (-0.5, -0.7, -1.0, -2.0), 2), (-9.0, (-0.5, -0.7), TOP), (-9.0, (), TOP)],
)
def test_a_rank_is_told_where_something_less_likely_is_listed(logprob, top, rank):
    assert Step(logprob, top).rank == rank


def test_what_is_scored_begins_at_the_first_other_token():
    assert _start([1, 2, 3, 4], [1, 2], "t") == 2
    assert _start([1, 9, 3], [1, 2], "t") == 1  # The end of the prompt and the answer are one token.
    assert _start([1, 2], None, "t") == 1
    for tokens, before in (([1, 2], [1, 2]), ([5, 2], [1, 2]), ([1], None)):
        with pytest.raises(InputError, match="leaves no tokens to score"):
            _start(tokens, before, "t")


class Told:
    """An engine that gives each text the same steps, and writes nothing."""

    def __init__(self, *top):
        self.step = Step(-1.0, top)

    def steps(self, text, after):
        return [self.step]

    def write(self, prompt, n_tokens):
        return ""


def test_probabilities_of_the_likeliest_tokens_add_up_to_one_at_most():
    half = math.log(0.5)
    assert check_trust(Told(half, half), "u") == 0.0
    with pytest.raises(SourceError, match="have a probability of 1.01 together"):
        check_trust(Told(half, math.log(0.51)), "u")
