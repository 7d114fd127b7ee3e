"""An HTTP server in this process that answers what a test says, and the completions of OpenAI from a live model."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from amnesia.live.model import LiveModel

Reply = tuple[int, Any]
"""Status and content: bytes as they are, anything else as JSON; of a redirection the place that it leads to."""


@dataclass
class Serving:
    """A server's address, and the headers of every request that it has had."""

    url: str = ""
    headers: list[dict[str, str]] = field(default_factory=list)


@contextlib.contextmanager
def serving(answer: Callable[[str, dict[str, Any]], Reply]) -> Iterator[Serving]:
    """A server on this machine that replies `answer(path, body)`; the body of a GET is empty."""
    found = Serving()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply({})

        def do_POST(self) -> None:
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, body: dict[str, Any]) -> None:
            found.headers.append(dict(self.headers))
            status, content = answer(self.path, body)
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            with contextlib.suppress(ConnectionError):  # Who asked may have stopped waiting.
                self.send_response(status)
                if status in range(300, 400):
                    self.send_header("Location", content.decode())
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@torch.inference_mode()
def completion(live: LiveModel, body: dict[str, Any]) -> dict[str, Any]:
    """What vLLM 0.32 replies to a greedy request for a completion, with `echo` and `logprobs` as it understands them."""
    prompt = live.tokenizer(body["prompt"])["input_ids"]
    ids = list(prompt)
    for _ in range(body["max_tokens"]):
        ids.append(int(live.model(torch.tensor([ids])).logits[0, -1].argmax()))
    by_number = body.get("return_tokens_as_token_ids")

    def shown_as(token: int) -> str:
        return f"token_id:{token}" if by_number else live.tokenizer.decode([token])

    shown = ids if body.get("echo") else ids[len(prompt) :]
    choice: dict[str, Any] = {"index": 0, "text": live.tokenizer.decode(shown), "logprobs": None}
    if n_top := body.get("logprobs"):
        logprobs = live.model(torch.tensor([ids])).logits[0].log_softmax(1)
        rows: list[tuple[float | None, dict[str, float] | None]] = [(None, None)]
        for place, token in enumerate(ids[1:]):
            top = {*logprobs[place].topk(n_top).indices.tolist(), token}
            own = float(logprobs[place, token])
            rows.append((own, {shown_as(one): float(logprobs[place, one]) for one in top}))
        rows = rows[-len(shown) :]
        choice["logprobs"] = {
            "tokens": [shown_as(token) for token in shown],
            "token_logprobs": [own for own, _ in rows],
            "top_logprobs": [top for _, top in rows],
        }
    return {"choices": [choice], "usage": {"prompt_tokens": len(prompt), "completion_tokens": body["max_tokens"]}}


def openai_server(live: LiveModel, *models: str) -> Callable[[str, dict[str, Any]], Reply]:
    """For `serving`: the models and completions of OpenAI's interface; every name stands for the model `live`."""

    def answer(path: str, body: dict[str, Any]) -> Reply:
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": name, "owned_by": "vllm"} for name in models]}
        return (200, completion(live, body)) if path == "/v1/completions" else (404, {"detail": "Not Found"})

    return answer
