"""A client of the page's server, and what it is told."""

from __future__ import annotations

import contextlib
import json
import queue
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from amnesia.ui import server
from amnesia.ui.jobs import Worker
from amnesia.ui.server import app_of
from amnesia.ui.session import Session

HOST, TOKEN = "127.0.0.1:4321", "the-token"
OURS = {"origin": f"http://{HOST}", "authorization": f"Bearer {TOKEN}"}
EDIT = {"entity": "Japan", "strength": 1.0, "cells": []}
PROMPT = {"prompt": "the capital of Japan is", "chat": False}


@contextlib.contextmanager
def served(session: Session, worker: Worker | None = None) -> Iterator[TestClient]:
    """A client of a session's page, whose worker is closed in the end."""
    worker = worker or Worker()
    with TestClient(app_of(session, worker, HOST, TOKEN), base_url=f"http://{HOST}") as client:
        try:
            yield client
        finally:
            worker.close()


@contextlib.contextmanager
def serving(session: Session) -> Iterator[str]:
    """The address at which the page's own server gives a session to a browser; signals do not reach its thread."""
    servers: list[server._Server] = []
    shown: queue.Queue[str] = queue.Queue()

    class Kept(server._Server):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            servers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "_Server", Kept)
        thread = threading.Thread(target=server.serve, args=(session, shown.put), daemon=True)
        thread.start()
        try:
            yield shown.get(timeout=60)
        finally:
            for one in servers:
                one.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


def post(client: TestClient, action: str, body: Any) -> Response:
    """What the server answers to an action that its own page asks for."""
    return client.post(f"/{action}", json=body, headers=OURS)


def events(answer: Response) -> list[tuple[str, Any]]:
    """Kinds and contents of what an action told, which ends as it should."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = [re.fullmatch(r"event: (\w+)\ndata: (.*)", part) for part in answer.text.strip().split("\n\n")]
    return [(match[1], json.loads(match[2])) for match in found]


def done(answer: Response) -> dict[str, Any]:
    """What an action that comes to its end has told, by kind; of several the last."""
    told = events(answer)
    assert told[-1][0] == "done", told
    return dict(told)


def failed(answer: Response) -> str:
    """The one line of an action that fails."""
    if answer.status_code == 400:
        line = answer.text
    else:
        kind, content = events(answer)[-1]
        assert kind == "error"
        line = content["line"]
    assert line and "\n" not in line
    return line
