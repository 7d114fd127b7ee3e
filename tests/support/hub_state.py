"""What the Hub of the tests holds, and what can go wrong with it."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from dataclasses import dataclass, field

# What the Hub's own .gitattributes sends to LFS, as far as models need it; anything else is a plain blob up to 10 MB.
LFS_PATTERNS = ("*.safetensors", "*.gguf", "*.bin", "*.pt", "*.pth", "*.h5", "*.onnx", "*.tflite", "*.model")
MAX_BLOB = 10 * 2**20

BASE_CARD = b"---\nlicense: apache-2.0\nlanguage:\n- en\n- fr\n---\n# The base\n"
"""The README of a base model, with what the Hub reads in it."""


@dataclass(frozen=True)
class Entry:
    """A file of a commit; `lfs` tells that it is a pointer to the large file storage, which names the hash `oid`."""

    content: bytes
    lfs: bool
    oid: str = ""

    @property
    def sha256(self) -> str:
        return self.oid or hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git itself holds of a large file."""
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()
        )

    @property
    def blob_id(self) -> str:
        content = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Commit:
    oid: str
    parent: str | None
    title: str
    tree: dict[str, Entry]


@dataclass
class Repo:
    id: str
    private: bool = False
    gated: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    pull_requests: int = 0

    def add_commit(self, ref: str, tree: dict[str, Entry], title: str, parent: str | None) -> Commit:
        seed = json.dumps([parent, title, len(self.commits), sorted((k, e.blob_id) for k, e in tree.items())])
        commit = Commit(hashlib.sha1(seed.encode()).hexdigest(), parent, title, tree)
        self.commits[commit.oid] = commit
        self.refs[ref] = commit.oid
        return commit

    def find(self, revision: str) -> Commit | None:
        for name in (revision, f"refs/heads/{revision}"):
            if name in self.refs:
                return self.commits[self.refs[name]]
        matches = [oid for oid in self.commits if len(revision) >= 7 and oid.startswith(revision)]
        return self.commits[matches[0]] if matches else None


@dataclass
class Fault:
    """What goes wrong with requests whose `METHOD path` matches `pattern` (with * and ?), `times` times.

    `skip` lets that many matching requests through first. `status` answers with an error; `cut_after` sends or reads
    that many bytes of the body and closes the connection; `cut_answer` does what is
    asked and closes it before answering; `delay` waits; `corrupt` flips the last byte of a
    body that comes in, or of a file that goes out; `whole_file` ignores a range; `sha256` is what a large file is said to have.
    """

    pattern: str
    times: float = 1
    skip: int = 0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    cut_answer: bool = False
    delay: float = 0.0
    corrupt: bool = False
    whole_file: bool = False
    sha256: str | None = None
    hits: int = 0


@dataclass
class Request:
    """One request: its status, bytes of the bodies that came up and went down, and whether it carried a token."""

    line: str
    with_token: bool
    status: int = 0
    up: int = 0
    down: int = 0


class RefusedError(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, **extra: object) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.extra = status, message, code, extra


class CutError(Exception):
    """The connection is to be closed without another byte."""


def is_lfs(path: str, size: int) -> bool:
    return size > MAX_BLOB or any(fnmatch.fnmatch(path.split("/")[-1], pattern) for pattern in LFS_PATTERNS)
