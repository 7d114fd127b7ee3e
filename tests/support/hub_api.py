"""The API of the local Hub: repositories, commits, LFS and tokens, as huggingface_hub asks for them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from urllib.parse import parse_qs, quote, unquote

import yaml

from support.hub_handler import Handler
from support.hub_state import LFS_PATTERNS, Commit, Entry, RefusedError, Repo, is_lfs

RELATIONS = ("finetune", "adapter", "quantized", "merge", "new_version")


class Api(Handler):
    """The Hub itself."""

    ROUTES = (
        (r"GET /api/whoami-v2", "whoami"),
        (r"POST /api/validate-yaml", "validate_yaml"),
        (r"POST /api/repos/create", "create"),
        (r"GET /api/(?:models|spaces|datasets)/(?P<id>[^/]+/[^/]+)(?:/revision/(?P<rev>[^/]+))?", "info"),
        (r"GET /api/models/(?P<id>[^/]+/[^/]+)/refs", "list_refs"),
        (r"PUT /api/models/(?P<id>[^/]+/[^/]+)/settings", "settings"),
        (r"GET /api/(?:models|datasets)/(?P<id>[^/]+/[^/]+)/tree/(?P<rev>[^/]+)", "tree"),
        (r"POST /api/(?:models|spaces)/(?P<id>[^/]+/[^/]+)/paths-info/(?P<rev>[^/]+)", "paths_info"),
        (r"POST /api/(?:models|spaces)/(?P<id>[^/]+/[^/]+)/preupload/(?P<rev>[^/]+)", "preupload"),
        (r"POST /api/(?:models|spaces)/(?P<id>[^/]+/[^/]+)/commit/(?P<rev>[^/]+)", "commit"),
        (r"POST /api/models/(?P<id>[^/]+/[^/]+)/branch/(?P<branch>[^/]+)", "branch"),
        (r"POST /api/models/(?P<id>[^/]+/[^/]+)/lfs-files/duplicate", "duplicate"),
        (r"POST /(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        (r"POST /(?P<id>[^/]+/[^/]+)\.git/info/lfs/verify", "lfs_verify"),
        (r"POST /api/complete_multipart/(?P<id>[^/]+/[^/]+)/(?P<oid>[0-9a-f]{64})", "complete_multipart"),
        (r"GET /api/models/(?P<id>[^/]+/[^/]+)/xet-write-token/(?P<rev>[^/]+)", "xet_write_token"),
        (r"(?:GET|HEAD) /(?P<id>(?:datasets/)?[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def handle_route(self):
        for pattern, name in self.ROUTES:
            match = re.fullmatch(pattern, f"{self.command} {self.route}")
            if match:
                # The revision may hold a quoted slash, so it is unquoted only now.
                values = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                if kind := re.match("/api/(spaces/|datasets/)", self.route):
                    values["id"] = kind[1] + values["id"]
                return getattr(self, name)(**values)
        raise RefusedError(404, f"no such address: {self.line}")

    def user(self) -> tuple[str, bool] | None:
        header = self.headers.get("Authorization")
        if header is None:
            return None
        user = self.hub.users.get(header.removeprefix("Bearer "))
        if user is None:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return user

    def writer(self, namespace: str) -> str:
        user = self.user()
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        if not user[1] or user[0] != namespace:
            raise RefusedError(403, f"You don't have the rights to write under the namespace {namespace!r}")
        return user[0]

    def repo(self, repo_id: str, *, write: bool = False, content: bool = False) -> Repo:
        user, repo = self.user(), self.hub.repos.get(repo_id)
        namespace = re.sub("^(spaces|datasets)/", "", repo_id).split("/")[0]
        if repo is None or (repo.private and (user is None or user[0] != namespace)):
            # The Hub does not tell strangers what exists.
            raise RefusedError(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if content and repo.gated and (user is None or user[0] != namespace):
            message = f"Access to model {repo_id} is restricted. You must have access to it and be authenticated"
            raise RefusedError(401 if user is None else 403, message, "GatedRepo")
        if write:
            self.writer(namespace)
        return repo

    def at(self, repo: Repo, revision: str) -> Commit:
        commit = repo.find(revision)
        if commit is None:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def later(self, document: object, status: int = 200):
        return lambda: self.reply(document, status)

    def whoami(self):
        user = self.user()
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        role = "write" if user[1] else "read"
        return self.later({"type": "user", "name": user[0], "auth": {"accessToken": {"role": role}}, "orgs": []})

    def validate_yaml(self):
        text = json.loads(self.body)["content"]
        match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        if match is None:
            return self.later({"warnings": [{"message": "empty or missing yaml metadata in repo card"}], "errors": []})
        errors = []
        try:
            data = yaml.safe_load(match[1])
            for key, kinds in {"license": str, "library_name": str, "pipeline_tag": str, "tags": list}.items():
                if key in data and not isinstance(data[key], kinds):
                    errors.append(f'"{key}" must be a {kinds.__name__}')
            if data.get("base_model_relation", "finetune") not in RELATIONS:
                errors.append(f'"base_model_relation" must be one of {RELATIONS}')
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", data.get("base_model", "a/b")):
                errors.append('"base_model" must be a repository')
        except yaml.YAMLError as error:
            errors.append(str(error))
        if errors:
            raise RefusedError(
                400, "Invalid metadata", errors=[{"message": message} for message in errors], warnings=[]
            )
        return self.later({"warnings": [], "errors": []})

    def create(self):
        asked = json.loads(self.body)
        namespace = asked.get("organization") or (self.user() or ("", False))[0]
        shown = self.writer(namespace) + "/" + asked["name"]
        is_space = asked.get("type") == "space"
        if is_space and asked.get("sdk") != "static":
            raise RefusedError(400, "a Space needs its sdk")
        name = f"spaces/{shown}" if is_space else shown
        url = f"{self.hub.url}/{name}"
        if name in self.hub.repos:
            raise RefusedError(409, "You already created this model repo", url=url)
        private = asked.get("private") or asked.get("visibility") == "private"
        attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS)
        self.hub.add_repo(name, {".gitattributes": attributes.encode()}, private=bool(private))
        return self.later({"url": url, "name": shown, "id": shown})

    def info(self, id: str, rev: str = "main"):
        repo = self.repo(id)
        commit, id = self.at(repo, rev), re.sub("^(spaces|datasets)/", "", id)
        siblings = []
        for name, entry in sorted(commit.tree.items()):
            row: dict[str, object] = {"rfilename": name}
            if "blobs" in self.query:
                row |= {"size": len(entry.content), "blobId": entry.blob_id}
                if entry.lfs:
                    row["lfs"] = {
                        "sha256": self.fault.sha256 or entry.sha256,
                        "size": len(entry.content),
                        "pointerSize": len(entry.pointer),
                    }
            siblings.append(row)
        return self.later(
            {
                "id": id,
                "modelId": id,
                "author": id.split("/")[0],
                "sha": commit.oid,
                "private": repo.private,
                "gated": "manual" if repo.gated else False,
                "lastModified": "2026-01-01T00:00:00.000Z",
                "tags": [],
                "siblings": siblings,
            }
        )

    def list_refs(self, id: str):
        repo = self.repo(id)
        rows = {"branches": [], "pullRequests": [], "tags": [], "converts": []}
        for ref, oid in repo.refs.items():
            kind = "pullRequests" if ref.startswith("refs/pr/") else "branches"
            rows[kind].append({"name": ref.removeprefix("refs/heads/"), "ref": ref, "targetCommit": oid})
        return self.later(rows)

    def settings(self, id: str):
        repo, asked = self.repo(id, write=True), json.loads(self.body)
        repo.private = asked.get("private", asked.get("visibility") == "private")
        return self.later({"private": repo.private})

    def _row(self, name: str, entry: Entry) -> dict[str, object]:
        row: dict[str, object] = {"type": "file", "path": name, "size": len(entry.content), "oid": entry.blob_id}
        if entry.lfs:
            oid = self.fault.sha256 or entry.sha256
            row["lfs"] = {"oid": oid, "size": len(entry.content), "pointerSize": len(entry.pointer)}
            row["xetHash"] = hashlib.sha256(b"xet" + entry.sha256.encode()).hexdigest()
        return row

    def tree(self, id: str, rev: str):
        repo = self.repo(id)
        rows = [self._row(name, entry) for name, entry in sorted(self.at(repo, rev).tree.items())]
        return self.later(rows)

    def paths_info(self, id: str, rev: str):
        repo = self.repo(id)
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode())["paths"]
        tree = self.at(repo, rev).tree
        return self.later([self._row(name, tree[name]) for name in paths if name in tree])

    def preupload(self, id: str, rev: str):
        repo = self.repo(id, write=True)
        tree = self.at(repo, rev).tree
        rows = []
        for row in json.loads(self.body)["files"]:
            known = tree.get(row["path"])
            oid = None if known is None else known.sha256 if known.lfs else known.blob_id
            mode = "lfs" if is_lfs(row["path"], row["size"]) else "regular"
            rows.append({"path": row["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return self.later({"files": rows})

    def lfs_batch(self, id: str):
        repo = self.repo(id, write=True)
        rows = []
        for row in json.loads(self.body)["objects"]:
            answer: dict[str, object] = {"oid": row["oid"], "size": row["size"]}
            if row["oid"] not in repo.objects:
                verify = f"{self.hub.url}/{id}.git/info/lfs/verify"
                answer["actions"] = {"upload": self._upload(id, row["oid"], row["size"]), "verify": {"href": verify}}
            rows.append(answer)
        return self.later({"transfer": "basic" if self.hub.part_size is None else "multipart", "objects": rows})

    def _upload(self, id: str, oid: str, size: int) -> dict[str, object]:
        """Where an object goes: one address, or one for each part and one that puts them together."""
        address = f"{self.hub.storage_url}/{id}/{oid}"
        part_size = self.hub.part_size
        if part_size is None or size <= part_size:
            return {"href": f"{address}?signature=valid"}
        # What an interrupted upload sent in parts is lost, as it is on the Hub.
        self.hub.parts[oid] = {}
        parts = {str(n + 1): f"{address}?signature=valid&part={n + 1}" for n in range(-(-size // part_size))}
        whole = f"{self.hub.url}/api/complete_multipart/{id}/{oid}?signature=valid"
        return {"href": whole, "header": {"chunk_size": str(part_size), **parts}}

    def complete_multipart(self, id: str, oid: str):
        if self.query.get("signature") != "valid":
            raise RefusedError(403, "the address is not signed")
        parts, asked = self.hub.parts.get(oid, {}), json.loads(self.body)
        named = {row["partNumber"]: row["etag"].strip('"') for row in asked["parts"]}
        if asked["oid"] != oid or named != {n: hashlib.md5(part).hexdigest() for n, part in parts.items()}:
            raise RefusedError(400, "the parts are not those that were sent")
        content = b"".join(parts[n] for n in sorted(parts))
        if hashlib.sha256(content).hexdigest() != oid:
            raise RefusedError(400, "the parts do not have the announced sha256")
        self.hub.repos[id].objects[oid] = content
        return self.later({"success": True})

    def xet_write_token(self, id: str, rev: str):
        self.repo(id, write=True)
        token, expires = f"xet-{id}", 2**33
        headers = {
            "X-Xet-Cas-Url": self.hub.xet_url,
            "X-Xet-Access-Token": token,
            "X-Xet-Token-Expiration": str(expires),
        }
        answer = {"accessToken": token, "exp": expires, "casUrl": self.hub.xet_url}
        return lambda: self.reply(answer, headers=headers)

    def lfs_verify(self, id: str):
        repo, asked = self.repo(id, write=True), json.loads(self.body)
        if len(repo.objects.get(asked["oid"], b"")) != asked["size"]:
            raise RefusedError(404, "the object is not there, or has another size")
        return self.later({})

    def duplicate(self, id: str):
        source, asked = self.repo(id, content=True), json.loads(self.body)
        target = self.repo(asked["target"]["name"], write=True)
        failed = []
        for row in asked["files"]:
            if row["sha256"] in source.objects:
                target.objects[row["sha256"]] = source.objects[row["sha256"]]
            else:
                failed.append({"sha256": row["sha256"], "error": "not found"})
        return self.later({"success": [], "failed": failed})

    def commit(self, id: str, rev: str):
        repo = self.repo(id, write=True)
        parent = self.at(repo, rev)
        header, *rows = (json.loads(line) for line in self.body.splitlines())
        if header["value"].get("parentCommit") not in (None, parent.oid):
            raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(parent.tree)
        for row in rows:
            value = row["value"]
            path = value["path"]
            if row["key"] == "file":
                content = base64.b64decode(value["content"])
                if is_lfs(path, len(content)) and content:
                    raise RefusedError(400, f"{path} must be committed through LFS")
                tree[path] = Entry(content, False)
            elif row["key"] == "lfsFile":
                if value["oid"] not in repo.objects:
                    raise RefusedError(400, f"LFS pointer of {path} points to a file that does not exist")
                tree[path] = Entry(repo.objects[value["oid"]], True, value["oid"])
            elif row["key"] == "deletedFile":
                if path not in tree:
                    raise RefusedError(404, "A file with this name doesn't exist", "EntryNotFound")
                del tree[path]
            else:
                tree = {name: entry for name, entry in tree.items() if not name.startswith(path.rstrip("/") + "/")}
        answer = {"success": True}
        if self.query.get("create_pr"):
            repo.pull_requests += 1
            ref = f"refs/pr/{repo.pull_requests}"
            answer["pullRequestUrl"] = f"{self.hub.url}/{id}/discussions/{repo.pull_requests}"
        else:
            ref = rev if rev.startswith("refs/") else f"refs/heads/{rev}"
            if ref not in repo.refs:
                raise RefusedError(400, f"{rev} is not a branch")
        made = repo.add_commit(ref, tree, header["value"]["summary"], parent.oid)
        return self.later(answer | {"commitOid": made.oid, "commitUrl": f"{self.hub.url}/{id}/commit/{made.oid}"})

    def branch(self, id: str, branch: str):
        repo = self.repo(id, write=True)
        if f"refs/heads/{branch}" in repo.refs:
            raise RefusedError(409, "Reference already exists")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        repo.refs[f"refs/heads/{branch}"] = self.at(repo, start).oid
        return self.later({})

    def resolve(self, id: str, rev: str, path: str):
        repo = self.repo(id, content=True)
        commit = self.at(repo, rev)
        if path not in commit.tree:
            raise RefusedError(404, "Entry not found", "EntryNotFound")
        entry = commit.tree[path]
        headers = {"X-Repo-Commit": commit.oid}
        if not entry.lfs:
            return lambda: self.send_file(entry.content, headers | {"ETag": f'"{entry.blob_id}"'})
        headers |= {
            "Location": f"{self.hub.storage_url}/{quote(id)}/{entry.sha256}?signature=valid",
            "X-Linked-Size": str(len(entry.content)),
            "X-Linked-Etag": f'"{self.fault.sha256 or entry.sha256}"',
        }
        return lambda: self.send(302, b"", headers)
