"""A served model as the evaluation asks it: the same questions as of a model in memory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeVar

from amnesia.domain import Answer
from amnesia.errors import InputError, clipped
from amnesia.progress import Progress
from amnesia.servers.client import Address, Client
from amnesia.servers.engines import EchoEngine, Engine, LlamaCppEngine, check_trust

N_REQUESTS = 8
"""Requests that wait for a server at a time; servers put them into batches, or in a row."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Server:
    """A model on a server. `name` is what it is called there, without the path to its file.

    `spread` (nats) is how far two answers to the same question differed. `chat` is what its model is fed before its
    answer to a message, where that is known: no server says so in the same way as another.
    """

    name: str
    url: str
    engine: Engine
    spread: float
    chat: Callable[[str], str] | None = None

    def answer_logprobs(self, pairs: Sequence[tuple[str, str]], progress: Progress | None = None) -> list[Answer]:
        """Each answer after its prompt, nothing generated; `pairs` are prompts, and prompts followed by answers.

        Ranks beyond `engines.TOP` are not told apart. Raises SourceError for what the server refuses.
        """

        def ask(pair: tuple[str, str]) -> Answer:
            prompt, whole = pair
            steps = self.engine.steps(whole, prompt)
            return Answer(sum(step.logprob for step in steps), steps[0].logprob, steps[0].rank)

        return list(_each(ask, pairs, progress))

    def generate(self, prompts: Sequence[str], max_new_tokens: int = 12, progress: Progress | None = None) -> list[str]:
        """Greedy continuation of each prompt."""
        return list(_each(lambda prompt: self.engine.write(prompt, max_new_tokens), prompts, progress))

    def text_logprobs(self, texts: Sequence[str], progress: Progress | None = None) -> list[tuple[float, int]]:
        """Log-probability (nats) of all tokens of each text but the first, and their number."""

        def ask(text: str) -> tuple[float, int]:
            steps = self.engine.steps(text, None)
            return sum(step.logprob for step in steps), len(steps)

        return list(_each(ask, texts, progress))


def connect(address: str) -> Server:
    """The model that a server serves, after tries whether its log-probabilities can be trusted.

    Raises InputError for what is no address and for several models without a name, SourceError for a server that does
    not answer, or gives no log-probabilities of texts that it is given.
    """
    where = Address.parse(address)
    client = Client(where.url)
    check = client.reply("expected an OpenAI-compatible server; give its address")
    rows = check.list(check.mapping(client.get("/v1/models"), "the reply").get("data"), "data")
    models = {check.text(check.mapping(row, "data").get("id"), "data.id"): row for row in rows}
    model = _chosen(where, list(models))
    engine: Engine = EchoEngine(client, model)
    if models[model].get("owned_by") == "llamacpp":
        meta = check.mapping(models[model].get("meta"), "data.meta")
        engine = LlamaCppEngine(client, model, check.integer(meta.get("n_vocab"), "data.meta.n_vocab"))
    return Server(model.replace("\\", "/").rpartition("/")[2], where.url, engine, check_trust(engine, where.url))


def _chosen(where: Address, models: list[str]) -> str:
    listed = ", ".join(clipped(name) for name in models[:10])
    if where.model is not None:
        if where.model not in models:
            raise InputError(f"the server at {where.url} has no model {where.model!r}: it has {listed}")
        return where.model
    if not models:
        raise InputError(f"the server at {where.url} serves no model: let it load one, or give another server")
    if len(models) != 1:
        raise InputError(f"the server at {where.url} has {len(models)} models ({listed}): give URL#MODEL")
    return models[0]


def _each(function: Callable[[T], R], items: Sequence[T], progress: Progress | None) -> Iterator[R]:
    """What `function` says to each item, in their order; several are asked at a time.

    Who is interrupted, or has got an error, waits for no other reply: a server that hangs would hold a process up until
    its time is over, as threads of a pool do.
    """
    left = SimpleQueue[tuple[Future[R], T]]()
    futures = [Future[R]() for _ in items]
    for pair in zip(futures, items, strict=True):
        left.put(pair)

    def work() -> None:
        with contextlib.suppress(Empty):
            while True:
                future, item = left.get_nowait()
                if future.set_running_or_notify_cancel():
                    try:
                        future.set_result(function(item))
                    except BaseException as error:
                        future.set_exception(error)

    for _ in range(min(N_REQUESTS, len(items))):
        threading.Thread(target=work, daemon=True).start()
    try:
        for future in futures:
            yield future.result()
            if progress:
                progress(1)
    finally:
        for future in futures:
            future.cancel()
