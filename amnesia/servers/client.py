"""Requests to a server in JSON, and all that may go wrong with them as one line."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import requests

from amnesia.errors import InputError, SourceError, clipped, in_one_line
from amnesia.files.strict_json import StrictJson

KEY_VARIABLE = "AMNESIA_SERVER_KEY"
"""The environment variable with the key that servers want; it is sent as a bearer token, and never shown."""

CONNECT_SECONDS = 10
READ_SECONDS = 300
MAX_REPLY = 2**26
"""Bytes of one reply: thousands of tokens with the likeliest ones beside each take a few million."""

_EXAMPLE = "expected http://HOST:PORT, with #MODEL behind it where several are served"


@dataclass(frozen=True)
class Address:
    """Where a server is, without the path of its interface; `model` is the one that is meant where it has several."""

    url: str
    model: str | None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `http(s)://HOST[:PORT][/PATH][/v1][#MODEL]`; raises InputError for anything else."""
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise InputError(f"server {clipped(text.rpartition('@')[2])!r} is no address: {_EXAMPLE}") from error
        if parts.username is not None or parts.password is not None:
            raise InputError(f"an address of a server holds no credentials: put the key into {KEY_VARIABLE}")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise InputError(f"server {clipped(text)!r} is no address: {_EXAMPLE}")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
        url = f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{path}"
        return cls(url, unquote(parts.fragment) or None)


def is_here(url: str) -> bool:
    """Whether an address is one of this machine itself."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Client:
    """The interface of the server at `url`; SourceError, which names it, says what it refuses or does not do."""

    url: str
    _session: requests.Session = field(default_factory=requests.Session, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Also without a key, because requests would look for one in the user's .netrc.
        self._session.auth = _authorized
        # Settings of proxies are about the network.
        self._session.trust_env = not is_here(self.url)

    def get(self, path: str) -> Any:
        """The JSON at `path`."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON that answers `body`."""
        return self._ask("POST", path, body)

    def reply(self, remedy: str) -> StrictJson:
        """Checks for what the server has said."""
        return StrictJson(f"the reply of the server at {self.url}", SourceError, remedy)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        try:
            with self._session.request(
                method,
                self.url + path,
                json=body,
                timeout=(CONNECT_SECONDS, READ_SECONDS),
                allow_redirects=False,
                stream=True,
            ) as response:
                content = _limited(response, self.url)
                status, to = response.status_code, response.headers.get("Location", "")
        except requests.Timeout as error:
            raise SourceError(
                f"the server at {self.url} did not answer {path} within {READ_SECONDS} s: see whether it still works"
            ) from error
        except requests.exceptions.ChunkedEncodingError as error:
            raise SourceError(
                f"the server at {self.url} broke off its reply to {path}: see what its log says"
            ) from error
        except requests.RequestException as error:
            raise SourceError(
                f"no server answers at {self.url} ({_cause(error)}): start it, or give its address"
            ) from error
        checked = self.reply("expected an OpenAI-compatible server; give its address")
        if status != requests.codes.ok:
            said = _said(content) or "without a word"
            raise SourceError(f"the server at {self.url} refuses {path} (HTTP {status}: {said}): {_remedy(status, to)}")
        return checked.parse(content)


def _remedy(status: int, to: str) -> str:
    """What can be done about a status that is no success; `to` is where a redirection leads."""
    if status in (requests.codes.unauthorized, requests.codes.forbidden):
        return f"set {KEY_VARIABLE} to the key that it wants"
    if 300 <= status < 400:
        return f"it leads to {clipped(to) or 'nowhere'}, which is not followed; give the address of the server itself"
    return "see what its log says, or give the address of an OpenAI-compatible server"


def _authorized(request: requests.PreparedRequest) -> requests.PreparedRequest:
    if key := _key():
        request.headers["Authorization"] = f"Bearer {key}"
    return request


def _key() -> str | None:
    """The key, without the end of a line that a file may have put there. Raises InputError for what is no key."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"{KEY_VARIABLE} holds characters that no key has: set it to the key alone, on one line")
    return key or None


def _limited(response: requests.Response, url: str) -> bytes:
    content = bytearray()
    for block in response.iter_content(2**16):
        content += block
        if len(content) > MAX_REPLY:
            raise SourceError(f"the server at {url} sends more than {MAX_REPLY >> 20} MB in one reply: give another")
    return bytes(content)


def _cause(error: requests.RequestException) -> str:
    """What lies beneath an error of requests, whose own words repeat the address several times."""
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    said = in_one_line(reason if isinstance(reason, Exception) else error)
    return said.rpartition(": ")[2] if isinstance(reason, Exception) else said


def _said(content: bytes) -> str:
    """What a refusal says, in one line, without the key that it may repeat."""
    text = " ".join(content[:2000].decode("utf-8", "replace").split())
    if key := _key():
        text = text.replace(key, "…")
    return text if len(text) <= 240 else text[:237] + "..."
