"""The server of the page: on this machine alone, for one browser that has its address, and for nobody else.

Every request must name this server as its host, come from its page, and bring its token.
"""

from __future__ import annotations

import functools
import hmac
import json
import secrets
import socket
from collections.abc import AsyncGenerator, Callable
from types import FrameType
from typing import Any

import uvicorn
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.datastructures import Headers, QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from amnesia.domain import Cell
from amnesia.edits import ColumnEdit
from amnesia.errors import AmnesiaError, InputError
from amnesia.files.strict_json import StrictJson
from amnesia.report.page import look, policy_of
from amnesia.ui.jobs import Job, Worker, line_of
from amnesia.ui.session import Session, Wanted

MAX_BODY = 2**17
"""Bytes of a request."""

_READ = StrictJson("the request", InputError, "reload the page")
_YIELDING = ("attempt", "map")  # Answers are asked anew at every move of a slider; the rest is waited for.


def serve(session: Session, show: Callable[[str], None]) -> None:
    """Serve the page until an interrupt, which is raised once all has ended; `show` is told the address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        host, token, worker = f"127.0.0.1:{listener.getsockname()[1]}", secrets.token_urlsafe(32), Worker()
        config = uvicorn.Config(
            app_of(session, worker, host, token),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        listener.listen()
        show(f"http://{host}/?token={token}")
        try:
            _Server(config, worker).run(sockets=[listener])
        finally:
            worker.close()


class _Server(uvicorn.Server):
    """Ends its work with itself."""

    def __init__(self, config: uvicorn.Config, worker: Worker) -> None:
        super().__init__(config)
        self._worker = worker

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._worker.cancel()
        super().handle_exit(sig, frame)


def app_of(session: Session, worker: Worker, host: str, token: str) -> ASGIApp:
    """The page of a session and what it may ask for, behind the guard."""
    text, policy = page(session)
    # Layers are run often where steps are told of seldom, and a pass of the model may take seconds.
    live = session.live
    for layer in range(live.shape.n_layers):
        live.model.get_submodule(live.shape.layer_path(layer)).register_forward_pre_hook(lambda *_: worker.check())

    async def show(_: Request) -> Response:
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    async def cancel(_: Request) -> Response:
        worker.cancel()
        return PlainTextResponse("")

    async def act(request: Request) -> Response:
        name = request.path_params["action"]
        try:
            job = Job(name, _work(session, name, await _body(request)), yields=name in _YIELDING)
            worker.start(job)
        except AmnesiaError as error:
            return PlainTextResponse(line_of(error), 400)
        return StreamingResponse(_stream(job), media_type="text/event-stream")

    routes = [
        Route("/", show),
        Route("/cancel", cancel, methods=["POST"]),
        Route("/{action:str}", act, methods=["POST"]),
    ]
    return Guard(Starlette(routes=routes), host, token)


async def _stream(job: Job) -> AsyncGenerator[str]:
    async for kind, content in job.events():
        yield f"event: {kind}\ndata: {json.dumps(content, allow_nan=False)}\n\n"


async def _body(request: Request) -> bytes:
    found = b""
    async for part in request.stream():
        found += part
        if len(found) > MAX_BODY:
            raise InputError(f"the request has more than {MAX_BODY} bytes: shorten the prompt")
    return found


def _work(session: Session, name: str, body: bytes) -> Callable[[Job], None]:
    """What a request asks for; raises InputError for what is no request of the page."""
    content = _READ.mapping(_READ.parse(body), "the whole")
    if name == "search":
        row = _READ.object(content, "the whole", "entity")
        return functools.partial(session.search, entity=_READ.string(row["entity"], "entity"))
    if name in _YIELDING:
        row = _READ.object(content, "the whole", "edit prompt chat")
        return functools.partial(
            session.attempt if name == "attempt" else session.map,
            wanted=_wanted(row["edit"]),
            prompt=_READ.string(row["prompt"], "prompt"),
            as_chat=_READ.boolean(row["chat"], "chat"),
        )
    if name == "save":
        row = _READ.object(content, "the whole", "edit format output")
        return functools.partial(
            session.save,
            wanted=_wanted(row["edit"]),
            form=_READ.string(row["format"], "format"),
            output=_READ.string(row["output"], "output"),
        )
    raise InputError(f"there is no {name!r} to ask for: reload the page")


def _wanted(value: Any) -> Wanted:
    row = _READ.object(value, "edit", "entity strength cells")
    cells = [_READ.object(cell, "cells", "cell multiplier") for cell in _READ.list(row["cells"], "cells")]
    return Wanted(
        _READ.text(row["entity"], "entity"),
        _READ.number(row["strength"], "strength"),
        tuple(
            ColumnEdit(Cell.parse(_READ.text(cell["cell"], "cell")), _READ.number(cell["multiplier"], "multiplier"))
            for cell in cells
        ),
    )


def page(session: Session) -> tuple[str, str]:
    """The page and its content security policy: nothing runs in it but its own script, and all it asks is here."""
    environment = Environment(
        autoescape=True, loader=PackageLoader("amnesia.ui"), undefined=StrictUndefined, trim_blocks=True
    )
    assert environment.loader is not None
    style, script = (environment.loader.get_source(environment, name)[0] for name in ("ui.css", "ui.js"))
    style = look() + style
    text = environment.get_template("ui.html").render(
        model=str(session.source),
        entity="" if session.recipe is None else session.recipe.target.entity,
        formats=session.formats,
        has_chat=session.form is not None,
        style=Markup(style),
        script=Markup(script),
    )
    return text, f"{policy_of(style, script)}; connect-src 'self'; img-src data:; frame-ancestors 'none'"


class Guard:
    """Lets a request through to `app` that is meant for this server, comes from its page, and has its token."""

    def __init__(self, app: ASGIApp, host: str, token: str) -> None:
        self._app, self._host, self._token = app, host, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(scope)):
            await PlainTextResponse(refusal, 403)(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await self._app(scope, receive, guarded)

    def _refusal(self, scope: Scope) -> str | None:
        headers, asks = Headers(scope=scope), scope["method"] != "GET"
        # A name that somebody lets point to this machine is another host, and a page there another origin.
        if headers.getlist("host") != [self._host]:
            return f"this server is {self._host}: open the address that it printed"
        if headers.getlist("origin") not in ([f"http://{self._host}"], *([] if asks else [[]])):
            return "the request comes from another page: open the address that the server printed"
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if not asks:
            given = QueryParams(scope["query_string"]).get("token", "")
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            return "the token is missing or wrong: open the address that the server printed"
        return None


_HEADERS = [
    (name.encode(), value.encode())
    for name, value in {
        "cache-control": "no-store",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }.items()
]
