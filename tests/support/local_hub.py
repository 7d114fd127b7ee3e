"""A Hub on the loopback interface for the real client: repositories, LFS, commits, ranges, and faults on demand.

It keeps everything in memory and speaks what huggingface_hub sends: the API on one port, large files on others, as the
Hub's storage is other hosts, which must never see the user's token. Large files arrive by LFS in one request, by LFS in
parts where `part_size` is set, or by the Xet protocol. They are stored once for each repository that holds them, so
that what one repository has is not present in another one until it is duplicated.
"""

from __future__ import annotations

import fnmatch
import hashlib
import threading
from http.server import ThreadingHTTPServer

from support.hub_api import Api
from support.hub_handler import Handler
from support.hub_state import Entry, Fault, Repo, Request, is_lfs
from support.hub_storage import Storage, XetStorage


class LocalHub:
    """The Hub's state; a context manager that serves it. `url` is for HF_ENDPOINT."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.users: dict[str, tuple[str, bool]] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.part_size: int | None = None
        self.parts: dict[str, dict[int, bytes]] = {}
        self.xorbs: dict[str, list[bytes]] = {}
        self.lock = threading.RLock()
        self._servers = [_server(self, handler) for handler in (Api, Storage, XetStorage)]
        self.url, self.storage_url, self.xet_url = (
            f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers
        )

    def __enter__(self) -> LocalHub:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add_user(self, name: str, *, can_write: bool = True) -> str:
        """A new user's token."""
        token = f"hf_{hashlib.sha256(name.encode()).hexdigest()[:34]}"
        self.users[token] = (name, can_write)
        return token

    def add_repo(self, repo_id: str, files: dict[str, bytes], *, private: bool = False, gated: bool = False) -> Repo:
        """A repository with a first commit, past the API."""
        repo = self.repos[repo_id] = Repo(repo_id, private, gated)
        tree = {name: Entry(content, is_lfs(name, len(content))) for name, content in files.items()}
        repo.objects = {entry.sha256: entry.content for entry in tree.values() if entry.lfs}
        repo.add_commit("refs/heads/main", tree, "initial commit", None)
        return repo

    def fail(self, pattern: str, **what: object) -> Fault:
        """Let requests fail from now on; see `Fault`."""
        fault = Fault(pattern, **what)
        self.faults.append(fault)
        return fault

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a revision."""
        return {name: entry.content for name, entry in self.repos[repo_id].find(revision).tree.items()}

    def reset(self) -> None:
        """Forget the counts and the faults."""
        self.requests.clear()
        self.faults.clear()

    @property
    def up(self) -> int:
        """Bytes that came in the bodies of requests."""
        return sum(request.up for request in self.requests)

    @property
    def down(self) -> int:
        """Bytes that went out in the bodies of answers."""
        return sum(request.down for request in self.requests)

    def lines(self, pattern: str = "*") -> list[str]:
        """The requests that match."""
        return [request.line for request in self.requests if fnmatch.fnmatchcase(request.line, pattern)]

    def fault_for(self, line: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fnmatch.fnmatchcase(line, fault.pattern):
                    fault.hits += 1
                    if fault.skip < fault.hits <= fault.skip + fault.times:
                        return fault
        return None


def _server(hub: LocalHub, handler: type[Handler]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), {"hub": hub}))
    server.daemon_threads = True
    return server
