"""The storage of the tests' Hub: large files under signed addresses, and the content-addressed store of Xet.

Xet uploads follow the published specification (huggingface.co/docs/xet): a file is cut into chunks, chunks travel in
"xorbs", and a "shard" says of which chunks each file consists. Downloads go through LFS addresses, as for clients
without Xet.
"""

from __future__ import annotations

import hashlib
import re
import struct

import lz4.frame

from support.hub_handler import Handler
from support.hub_state import RefusedError

_ENTRY = struct.Struct("<32s4I")  # Every record of a shard: a hash and four numbers.
_END = b"\xff" * 32
_WITH_VERIFICATION, _WITH_METADATA = 1 << 31, 1 << 30
_SHARD_HEADER = 48


class Storage(Handler):
    """The content network: large files under signed addresses, without tokens."""

    def handle_route(self):
        if "Authorization" in self.headers:
            raise RefusedError(400, "only one way of authentication is allowed: a token was sent to the storage")
        repo_id, _, oid = self.route[1:].rpartition("/")
        repo = self.hub.repos[repo_id]
        if self.query.get("signature") != "valid":
            raise RefusedError(403, "the address is not signed")
        if self.command == "PUT" and "part" in self.query:
            self.hub.parts[oid][int(self.query["part"])] = self.body
            return lambda: self.send(200, b"", {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})
        if self.command == "PUT":
            if hashlib.sha256(self.body).hexdigest() != oid:
                raise RefusedError(400, "the content does not have the announced sha256")
            repo.objects[oid] = self.body
            return lambda: self.send(200, b"", {"ETag": f'"{oid}"'})
        content = repo.objects[oid]
        return lambda: self.send_file(content, {"ETag": f'"{oid}"'})


class XetStorage(Handler):
    """The content-addressed store, which knows only the token that the Hub gave for one repository."""

    def handle_route(self):
        repo_id = self.headers.get("Authorization", "").removeprefix("Bearer xet-")
        if repo_id not in self.hub.repos:
            raise RefusedError(401, "this is no token of the Xet storage")
        if match := re.fullmatch(r"/v1/xorbs/default/([0-9a-f]{64})", self.route):
            if self.command != "POST":
                raise RefusedError(404 if match[1] not in self.hub.xorbs else 200, "")
            self.hub.xorbs[match[1]] = chunks_of(self.body)
            return lambda: self.reply({"was_inserted": True})
        if self.command == "POST" and self.route in ("/v1/shards", "/shards"):
            for content in files_of(self.body, self.hub.xorbs):
                self.hub.repos[repo_id].objects[hashlib.sha256(content).hexdigest()] = content
            return lambda: self.reply({"result": 1})
        raise RefusedError(404, f"no such address: {self.line}")


def chunks_of(xorb: bytes) -> list[bytes]:
    """The chunks of a serialized xorb; an older client's footer at the end is not looked at."""
    chunks, at = [], 0
    while at < len(xorb) and xorb[at] == 0:
        size, scheme = int.from_bytes(xorb[at + 1 : at + 4], "little"), xorb[at + 4]
        n_bytes = int.from_bytes(xorb[at + 5 : at + 8], "little")
        data = xorb[at + 8 : at + 8 + size]
        if scheme:
            data = lz4.frame.decompress(data)
        if scheme == 2:
            data = _ungroup(data)
        assert len(data) == n_bytes, f"a chunk with compression {scheme} has {len(data)} bytes, {n_bytes} announced"
        chunks.append(data)
        at += 8 + size
    return chunks


def _ungroup(data: bytes) -> bytes:
    """Bytes that were grouped by their place in words of four, in their order again."""
    whole, start = bytearray(len(data)), 0
    for place in range(4):
        size = len(range(place, len(data), 4))
        whole[place::4] = data[start : start + size]
        start += size
    return bytes(whole)


def files_of(shard: bytes, xorbs: dict[str, list[bytes]]) -> list[bytes]:
    """The files that a shard describes, put together from the chunks that have arrived."""
    files, at = [], _SHARD_HEADER
    while True:
        file_hash, flags, n_terms, *_ = _ENTRY.unpack_from(shard, at)
        at += _ENTRY.size
        if file_hash == _END:
            return files
        content = b""
        for _ in range(n_terms):
            xorb, _, n_bytes, first, last = _ENTRY.unpack_from(shard, at)
            at += _ENTRY.size
            name = "".join(f"{word:016x}" for word in struct.unpack("<4Q", xorb))
            if name not in xorbs:
                raise RefusedError(400, f"the shard names the xorb {name}, which did not arrive")
            piece = b"".join(xorbs[name][first:last])
            if len(piece) != n_bytes:
                raise RefusedError(400, f"a term has {len(piece)} bytes, {n_bytes} announced")
            content += piece
        at += _ENTRY.size * (n_terms * bool(flags & _WITH_VERIFICATION) + bool(flags & _WITH_METADATA))
        files.append(content)
