"""How servers are made to say what a given text is worth: each kind of server in its own way.

The interface of OpenAI has `echo`: a prompt comes back with the log-probabilities of its tokens. vLLM and SGLang have
it. The server of llama.cpp ignores it without a word; there a grammar of single tokens makes the model write the given
text, and each of its steps says what the token was worth before that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol

from amnesia.errors import InputError, SourceError
from amnesia.servers.client import Client

TOP = 20
"""Likeliest tokens that are asked for at each place; vLLM gives no more unless it is told to."""

_NO_ECHO = "expected the log-probabilities of a prompt; serve the model with vLLM, SGLang or llama.cpp's own server"


@dataclass(frozen=True)
class Step:
    """One token of a text: its log-probability (nats) after what stands before it.

    `top` are the log-probabilities of the likeliest tokens there, at most TOP and perhaps the token itself.
    """

    logprob: float
    top: tuple[float, ...]

    @property
    def rank(self) -> int:
        """How many tokens are likelier; TOP where none of those that were listed is less likely."""
        listed_below = any(other < self.logprob for other in self.top)
        return sum(other > self.logprob for other in self.top) if listed_below else TOP


class Engine(Protocol):
    """What one kind of server does with a text."""

    def steps(self, text: str, after: str | None) -> list[Step]:
        """The tokens of `text` from the first that is not one of `after`, or from its second where that is None."""
        ...

    def write(self, prompt: str, n_tokens: int) -> str:
        """The greedy continuation, at most `n_tokens` long."""
        ...

    def count(self, text: str) -> int:
        """How many tokens a text has, those that are put before every text included."""
        ...


def n_shared(first: Sequence[object], second: Sequence[object]) -> int:
    """How many tokens two texts have in common at their beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))


def _start(tokens: Sequence[object], before: Sequence[object] | None, text: str) -> int:
    start = 1 if before is None else n_shared(tokens, before)
    if not 0 < start < len(tokens):
        raise InputError(f"text {text!r} leaves no tokens to score: lengthen prompt and answer")
    return start


@dataclass(frozen=True)
class EchoEngine:
    """The completions of OpenAI with `echo`."""

    client: Client
    model: str

    def steps(self, text: str, after: str | None) -> list[Step]:
        tokens, logprobs, tops = self._read(text)
        start = _start(tokens, None if after is None else self._read(after)[0], text)
        return [self._step(*row) for row in zip(logprobs[start:], tops[start:], strict=True)]

    def write(self, prompt: str, n_tokens: int) -> str:
        # A server may take its defaults from the model's generation_config.json.
        body = {"prompt": prompt, "max_tokens": n_tokens, "temperature": 0, "repetition_penalty": 1}
        check = self.client.reply(_NO_ECHO)
        return check.string(self._choice(body)["text"], "text")

    def count(self, text: str) -> int:
        return len(self._read(text)[0])

    def _read(self, text: str) -> tuple[list[Any], list[Any], list[Any]]:
        """Tokens, log-probabilities and likeliest tokens of a text."""
        # One token must be generated, because to some servers none means no limit.
        body = {"prompt": text, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": TOP}
        # vLLM: their texts are not unique, where they are no whole characters.
        choice = self._choice({**body, "return_tokens_as_token_ids": True})
        check = self.client.reply(_NO_ECHO)
        said = check.mapping(choice["logprobs"], "logprobs")
        n_tokens = check.integer(choice["n_tokens"], "usage.prompt_tokens")
        found = [
            check.list(said.get(name), f"logprobs.{name}") for name in ("tokens", "token_logprobs", "top_logprobs")
        ]
        if min(map(len, found)) < n_tokens or not n_tokens:
            raise check.fail(f"has {min(map(len, found))} log-probabilities for a prompt of {n_tokens} tokens")
        tokens, logprobs, tops = (list(row[:n_tokens]) for row in found)
        return tokens, logprobs, tops

    def _choice(self, body: dict[str, Any]) -> dict[str, Any]:
        check = self.client.reply(_NO_ECHO)
        found = check.mapping(self.client.post("/v1/completions", {"model": self.model, **body}), "the reply")
        row = check.mapping(next(iter(check.list(found.get("choices"), "choices")), None), "choices[0]")
        usage = check.mapping(found.get("usage"), "usage")
        return {"text": row.get("text"), "logprobs": row.get("logprobs"), "n_tokens": usage.get("prompt_tokens")}

    def _step(self, logprob: object, top: object) -> Step:
        check = self.client.reply(_NO_ECHO)
        likeliest = check.mapping(top, "logprobs.top_logprobs")
        values = [check.number(value, "logprobs.top_logprobs") for value in likeliest.values()]
        if not values:
            raise check.fail("has no likeliest tokens")
        return Step(check.number(logprob, "logprobs.token_logprobs"), tuple(values))


@dataclass(frozen=True)
class LlamaCppEngine:
    """llama.cpp's own interface to a model with `n_tokens` tokens."""

    client: Client
    model: str
    n_tokens: int

    def steps(self, text: str, after: str | None) -> list[Step]:
        tokens = self._tokens(text)
        start = _start(tokens, None if after is None else self._tokens(after), text)
        ids, found = [token for token, _ in tokens], []
        while len(found) < len(ids) - start:
            place = start + len(found)
            whole = [token for token, _ in takewhile(lambda token: token[1], tokens[place:])]
            if whole:
                rules = " ".join(f"<[{token}]>" for token in whole)
                rows = self._forced(ids[:place], len(whole), TOP, {"grammar": f"root ::= {rules}"})
                found += [self._step(row, token) for row, token in zip(rows, whole, strict=True)]
            else:
                # Of parts of characters nothing is said but in the list of what else might have been written.
                other = {"logit_bias": [[next((token for token, part in tokens if part), 0), _CERTAIN]]}
                (row,) = self._forced(ids[:place], 1, self.n_tokens, other)
                found.append(self._step(row, ids[place]))
        return found

    def _forced(self, prompt: list[int], n: int, n_probs: int, how: dict[str, Any]) -> list[Any]:
        """What is said of the `n` tokens that the model is made to write after a prompt."""
        body = {"prompt": prompt, "n_predict": n, "n_probs": n_probs, "response_fields": ["completion_probabilities"]}
        check = self.client.reply("start llama.cpp with more context (-c) for each of its slots, or a newer version")
        rows = check.list(self._complete({**body, **how}).get("completion_probabilities"), "completion_probabilities")
        if len(rows) != n:
            raise check.fail(f"has log-probabilities of {len(rows)} tokens, and {n} were to be written")
        return list(rows)

    def write(self, prompt: str, n_tokens: int) -> str:
        said = self._complete({"prompt": prompt, "n_predict": n_tokens, "response_fields": ["content"]})
        return self.client.reply("give a server of llama.cpp").string(said.get("content"), "content")

    def count(self, text: str) -> int:
        return len(self._tokens(text))

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        # No sampler but the likeliest token, whatever the server was started with.
        plain = {"model": self.model, "temperature": 0, "samplers": ["temperature"], "logit_bias": []}
        return self.client.reply("give a server of llama.cpp").mapping(
            self.client.post("/completion", {**plain, **body}), "the reply"
        )

    def _tokens(self, text: str) -> list[tuple[int, bool]]:
        """The tokens of a text, and whether each is whole characters."""
        check = self.client.reply("give a server of llama.cpp")
        body = {"model": self.model, "content": text, "add_special": True, "with_pieces": True}
        said = check.mapping(self.client.post("/tokenize", body), "the reply")
        rows = [check.mapping(row, "tokens") for row in check.list(said.get("tokens"), "tokens")]
        return [(check.integer(row.get("id"), "tokens.id"), isinstance(row.get("piece"), str)) for row in rows]

    def _step(self, row: object, token: int) -> Step:
        check = self.client.reply("expected log-probabilities of each token; bring llama.cpp up to date")
        said = check.mapping(row, "completion_probabilities")
        top = [check.mapping(item, "top_logprobs") for item in check.list(said.get("top_logprobs"), "top_logprobs")]
        listed = next((item for item in [said, *top] if item.get("id") == token), None)
        if listed is None:
            raise check.fail(f"says nothing of token {token}")
        likeliest = tuple(check.number(item.get("logprob"), "top_logprobs") for item in top[:TOP])
        return Step(check.number(listed.get("logprob"), "logprob"), likeliest)


def check_trust(engine: Engine, url: str) -> float:
    """How far two answers to the same question differ at most (nats), after tries whether they can be trusted.

    Raises SourceError when what is said are no log-probabilities of the model: above 0, of which the likeliest sum up
    to more than 1, changed by what was asked to be written, other than what the model writes, or other the second time.
    """
    first, second = ([engine.steps(text, after) for after, text in _PROBES] for _ in range(2))
    steps = [step for rows in first for step in rows]
    spread = max(
        abs(one.logprob - other.logprob)
        for rows, others in zip(first, second, strict=True)
        for one, other in zip(rows, others, strict=False)
    )

    def bad(problem: str) -> SourceError:
        return SourceError(f"log-probabilities of the server at {url} cannot be used: {problem}; serve it otherwise")

    if max(value for step in steps for value in (step.logprob, *step.top)) > _ROUNDING:
        raise bad("one is above 0")
    if (total := max(sum(map(math.exp, sorted(step.top)[-TOP:])) for step in steps)) > 1 + _ROUNDING:
        raise bad(f"the {TOP} likeliest tokens have a probability of {total:.2f} together, expected 1 at most")
    if all(step.logprob > -_ROUNDING for step in steps):
        raise bad("a text without sense is certain, so they are those of what was asked for and not of the model")
    if spread > _MAX_SPREAD:
        raise bad(f"asked twice, they differ by {spread:.2f} nats, expected {_MAX_SPREAD} at most")
    for (prompt, _), rows in zip(_PROBES, first, strict=True):
        leading = sorted(rows[0].top, reverse=True)[:2]
        written = engine.write(prompt, 4)
        if leading[0] - leading[-1] > _CLEAR and written and engine.steps(prompt + written, prompt)[0].rank > 0:
            raise bad(f"one token is by far the likeliest after {prompt!r}, and {written!r} begins with another")
    return spread


_PROBES = (
    ("The capital of France is the city of", "The capital of France is the city of seventeen purple violins"),
    ("One, two, three, four,", "One, two, three, four, dishwasher under"),
)
_ROUNDING = 1e-3
_MAX_SPREAD = 0.5  # Nats. Batches of other sizes change 8-bit activations by hundredths.
_CERTAIN = 1e4  # Added to a logit, more than any two differ by.
_CLEAR = 1.0  # Nats between the likeliest token and the next, from which on noise does not change their order.
