"""One request to the Hub of the tests: its body, the fault that befalls it, ranges, and the answer."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from support.hub_state import CutError, Fault, RefusedError, Request

if TYPE_CHECKING:
    from support.local_hub import LocalHub


class Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.route, self.query = url.path, {key: values[-1] for key, values in parse_qs(url.query).items()}
        self.line = f"{self.command} {unquote(url.path)}"
        # Noted before the answer, so that a client that has got its answer finds it counted.
        self.request_row = Request(self.line, "Authorization" in self.headers)
        self.hub.requests.append(self.request_row)
        self.fault = self.hub.fault_for(self.line) or Fault("")
        try:
            threading.Event().wait(self.fault.delay)  # Tests may make time.sleep return at once.
            self.body = self._read_body()
            if self.fault.status is not None:
                code = {"GatedRepo": "Access to model is restricted."}.get(self.fault.headers.get("X-Error-Code", ""))
                raise RefusedError(self.fault.status, code or "a fault on demand")
            with self.hub.lock:
                send = self.handle_route()
            if self.fault.cut_answer:
                raise CutError
            send()
        except RefusedError as error:
            headers = {"X-Error-Message": error.message, **self.fault.headers}
            if error.code:
                headers["X-Error-Code"] = error.code
            self.reply({"error": error.message, **error.extra}, error.status, headers)
        except (CutError, BrokenPipeError, ConnectionResetError):
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def handle_route(self):
        """Do what is asked, and return the function that sends the answer."""
        raise NotImplementedError

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            blocks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                blocks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(blocks)
        else:
            size = int(self.headers.get("Content-Length") or 0)
            if self.fault.cut_after is not None and size > self.fault.cut_after:
                self.request_row.up = len(self.rfile.read(self.fault.cut_after))
                raise CutError
            body = self.rfile.read(size)
        self.request_row.up = len(body)
        return self._spoilt(body)

    def reply(self, document: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(document).encode()
        self.send(status, content, {"Content-Type": "application/json", **(headers or {})})

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.request_row.status = status
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.fault.cut_after
        for start in range(0, len(content), 2**16):
            block = content[start : start + 2**16]
            if cut is not None and start + len(block) > cut:
                self.request_row.down += cut - start
                self.wfile.write(block[: cut - start])
                self.wfile.flush()
                raise CutError
            self.request_row.down += len(block)
            self.wfile.write(block)

    def send_file(self, content: bytes, headers: dict[str, str]) -> None:
        """A file, or the range of it that is asked for."""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""), re.IGNORECASE)
        headers = {"Content-Type": "application/octet-stream", **headers}
        if wanted is None or self.fault.whole_file:
            content = self._spoilt(content)
            self.send(200, content, {"Accept-Ranges": "none" if self.fault.whole_file else "bytes", **headers})
            return
        first, last = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
        if first > last:
            self.send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self.send(206, self._spoilt(content[first : last + 1]), headers)

    def _spoilt(self, content: bytes) -> bytes:
        """The content, its last byte flipped if that is the fault."""
        return content[:-1] + bytes([content[-1] ^ 1]) if self.fault.corrupt and content else content
