"""A loopback stand-in for the model hub, so that tests drive the real client without leaving the machine.

`HubStandIn` keeps repositories in memory and serves, on 127.0.0.1, the part of the hub's HTTP API with which
`huggingface_hub` creates, fills, lists and downloads a repository. Every file travels inside the commit itself (the
"regular" upload mode), so neither LFS nor Xet storage is needed. Anything outside that part is answered with 501.
"""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, final
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


@dataclass(frozen=True)
class Request:
    """What the client sent; `path` is still percent-encoded, as a branch name may hold slashes."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Message
    body: bytes

    @property
    def has_token(self) -> bool:
        """Whether a bearer token came along; any will do."""
        return re.match(r"Bearer \S", self.headers.get("Authorization", "")) is not None


@dataclass(frozen=True)
class Reply:
    """What goes back: raw bytes, or a value to send as JSON."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class HubError(Exception):
    """A refusal; the client picks the exception it raises by the error code rather than by the status."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        headers = {key.replace("_", "-"): value for key, value in headers.items()}
        self.reply = Reply({"error": message}, status, headers | {"X-Error-Code": code})


@dataclass
class Repo:
    """A repository: commit hash -> path -> content, and the hash that each branch points at."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        """Put a commit on `branch`, under a hash that no other commit of any hub has."""
        sha = self.branches[branch] = os.urandom(20).hex()
        self.commits[sha] = files
        return sha

    def sha(self, revision: str) -> str:
        """Find the commit that a branch name or a full commit hash stands for."""
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def entries(self, revision: str) -> dict[str, dict[str, Any]]:
        """Describe the files and folders at a revision, by path, like the listing endpoints."""
        entries: dict[str, dict[str, Any]] = {}
        for path, content in sorted(self.commits[self.sha(revision)].items()):
            for folder in map(str, list(PurePosixPath(path).parents)[:-1]):
                entries[folder] = {"type": "directory", "path": folder, "oid": _blob_id(folder.encode())}
            entries[path] = {"type": "file", "path": path, "size": len(content), "oid": _blob_id(content)}
        return entries


BROKEN = 0  # in place of a status: no answer at all


def _blob_id(content: bytes) -> str:
    """Hash a file like git. By this hash the client skips unchanged files and names its cached copies."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


_Endpoint = Callable[..., Reply]
_ROUTES: list[tuple[str, re.Pattern[str], bool, _Endpoint]] = []
_NAME = r"(?P<name>[^/]+/[^/]+|[^/]+)"  # a name without an owner is well-formed, and never found
_API = rf"/api/(?P<kind>models|datasets|spaces)/{_NAME}"
_REVISION = r"(?P<revision>[^/]+)"


def _route(methods: str, pattern: str, token: bool = False) -> Callable[[_Endpoint], _Endpoint]:
    """Serve `pattern` with the decorated method, which gets its named groups; `token` refuses anonymous calls."""

    def register(endpoint: _Endpoint) -> _Endpoint:
        _ROUTES.append((methods, re.compile(pattern), token, endpoint))
        return endpoint

    return register


@final
class HubStandIn:
    """An in-memory hub on an ephemeral port: `with HubStandIn() as hub:`, then HF_ENDPOINT is `hub.url`."""

    def __init__(self, user: str = "tester") -> None:
        self.user = user
        self.token_role = "write"  # of every token; "read" in whoami alone
        self.requests: list[tuple[str, str]] = []  # (method, path) of all that was asked
        self.repos: dict[str, Repo] = {}  # by "models/owner/name", "datasets/..." or "spaces/..."
        self._failures: list[tuple[int | None, str, str]] = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubStandIn":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail_next(
        self, n: int = 1, status: int | None = 500, method: str = "POST", path_contains: str = "commit"
    ) -> None:
        """Refuse the next `n` matching requests, before they change anything; without a status the connection breaks.

        After a 408, 429, 500, 502, 503 or 504, or a broken connection, the client itself repeats some requests, seconds
        apart: every preupload, and the commit of `upload_folder` unless Xet is disabled. Any other status, such as 403,
        is final.
        """
        self._failures += [(status, method, path_contains)] * n

    def files(self, name: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        """Give what a repository holds at a revision, for a test to look at."""
        repo = self.repos[f"{kind}/{name}"]
        return dict(repo.commits[repo.sha(revision)])

    def environ(self, hf_home: str | Path) -> dict[str, str]:
        """Give the environment for a child process that uses this hub, a cache of its own, and no user settings."""
        foreign = re.compile(r"HF_|HUGGING_?FACE_|TRANSFORMERS_|no_proxy$")  # caches, tokens, offline switches
        settings = {"HF_ENDPOINT": self.url, "HF_HOME": str(hf_home), "HF_TOKEN": "any", "NO_PROXY": "127.0.0.1"}
        switches = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "DISABLE_SAFETENSORS_CONVERSION")
        kept = {key: value for key, value in os.environ.items() if not foreign.match(key)}
        return kept | settings | dict.fromkeys(switches, "1")

    def answer(self, request: Request) -> Reply:
        """Log a request, then refuse it if a test asked for that, or let its endpoint answer; one at a time."""
        with self._lock:
            self.requests.append((request.method, request.path))
            try:
                for failure in self._failures:
                    if failure[1] == request.method and failure[2] in request.path:
                        self._failures.remove(failure)
                        if failure[0] is None:
                            return Reply(None, BROKEN)
                        raise HubError(failure[0], "The test asked for this failure.")
                for methods, pattern, token, endpoint in _ROUTES:
                    match = pattern.fullmatch(request.path)
                    if match and request.method in methods.split():
                        if token and not request.has_token:
                            raise HubError(401, "Invalid username or password.")
                        return endpoint(self, request, **{k: unquote(v or "") for k, v in match.groupdict().items()})
                raise HubError(501, f"The stand-in does not serve {request.method} {request.path}")
            except HubError as error:
                return error.reply

    def _find(self, request: Request, kind: str, name: str) -> Repo:
        """Look up a repository. An anonymous call gets a 401 for a private one and for one that does not exist."""
        repo = self.repos.get(f"{kind}/{name}")
        if repo is None or (repo.private and not request.has_token):
            raise HubError(404 if request.has_token else 401, "Repository not found", "RepoNotFound")
        return repo

    def _page(self, kind: str, name: str) -> str:
        """Give the address of a repository's page, from which the client reads its type and name."""
        return f"{self.url}/{name}" if kind == "models" else f"{self.url}/{kind}/{name}"

    @_route("GET", "/api/whoami-v2", token=True)
    def _whoami(self, request: Request) -> Reply:
        """Name the user behind the token, and what the token may."""
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": self.token_role}}
        return Reply({"type": "user", "name": self.user, "fullname": self.user, "orgs": [], "auth": auth})

    @_route("POST", "/api/validate-yaml")
    def _validate_yaml(self, request: Request) -> Reply:
        """Accept a README.md whose metadata are a mapping and whose licence looks like an identifier. The client asks
        before it commits one."""
        errors = []
        block = re.match(r"---\r?\n(.*?)\n---\s", json.loads(request.body)["content"], re.DOTALL)
        try:
            metadata = yaml.safe_load(block[1] if block else "") or {}
            if not isinstance(metadata, dict):
                errors.append("metadata must be an object")
            elif not re.fullmatch(r"[a-z0-9.+-]+", metadata.get("license", "unknown")):
                errors.append('"license" must be one of the known licences')
        except yaml.YAMLError as error:
            errors.append(str(error))
        return Reply({"errors": [{"message": text} for text in errors], "warnings": []}, 400 if errors else 200)

    @_route("POST", "/api/repos/create", token=True)
    def _create_repo(self, request: Request) -> Reply:
        """Create a repository with an empty first commit; if it exists, 409 and its address, for `exist_ok`."""
        asked = json.loads(request.body)
        kind, name = f"{asked.get('type') or 'model'}s", f"{asked.get('organization') or self.user}/{asked['name']}"
        if f"{kind}/{name}" in self.repos:
            return Reply({"error": "You already created this repo", "url": self._page(kind, name)}, 409)
        repo = Repo(private=bool(asked.get("private")) or asked.get("visibility") == "private")
        repo.commit("main", {})
        self.repos[f"{kind}/{name}"] = repo
        return Reply({"url": self._page(kind, name)})

    @_route("POST", rf"{_API}/branch/(?P<branch>[^/]+)", token=True)
    def _create_branch(self, request: Request, kind: str, name: str, branch: str) -> Reply:
        """Point a new branch at the revision asked for; `push_to_hub(revision=...)` starts with this."""
        repo = self._find(request, kind, name)
        if branch in repo.branches:
            raise HubError(409, f"Reference already exists: {branch}")
        repo.branches[branch] = repo.sha(json.loads(request.body or b"{}").get("startingPoint", "main"))
        return Reply({})

    @_route("GET", rf"{_API}(?:/revision/{_REVISION})?")
    def _repo_info(self, request: Request, kind: str, name: str, revision: str) -> Reply:
        """Describe a repository; `snapshot_download` asks, to turn a branch name into the hash of a commit."""
        repo, revision = self._find(request, kind, name), revision or "main"
        files = [entry for entry in repo.entries(revision).values() if entry["type"] == "file"]
        siblings = [{"rfilename": file["path"], "size": file["size"], "blobId": file["oid"]} for file in files]
        info = {"id": name, "sha": repo.sha(revision), "private": repo.private, "tags": [], "siblings": siblings}
        return Reply(info)

    @_route("GET", rf"{_API}/tree/{_REVISION}(?:/(?P<path>.+))?")
    def _tree(self, request: Request, kind: str, name: str, revision: str, path: str) -> Reply:
        """List a folder, with all that is below it when `recursive`; transformers expects 404 for a missing one."""
        entries = self._find(request, kind, name).entries(revision)
        if path and path not in entries:
            raise HubError(404, f"{path} does not exist", "EntryNotFound")
        deep = request.query.get("recursive", [""])[0].lower() == "true"
        parents = {key: [str(parent) for parent in PurePosixPath(key).parents] for key in entries}
        return Reply([entries[key] for key in entries if (path or ".") in parents[key][: None if deep else 1]])

    @_route("POST", rf"{_API}/paths-info/{_REVISION}")
    def _paths_info(self, request: Request, kind: str, name: str, revision: str) -> Reply:
        """Describe the paths asked for, leaving out those that do not exist."""
        entries = self._find(request, kind, name).entries(revision)
        return Reply([entries[path] for path in parse_qs(request.body.decode())["paths"] if path in entries])

    @_route("POST", rf"{_API}/preupload/{_REVISION}", token=True)
    def _preupload(self, request: Request, kind: str, name: str, revision: str) -> Reply:
        """Ask for each file inside the commit; by the hashes of what is there the client skips unchanged files."""
        entries = self._find(request, kind, name).entries(revision)
        plan = {"uploadMode": "regular", "shouldIgnore": False}
        paths = [file["path"] for file in json.loads(request.body)["files"]]
        return Reply({"files": [{"path": path, "oid": entries.get(path, {}).get("oid"), **plan} for path in paths]})

    @_route("POST", rf"{_API}/commit/{_REVISION}", token=True)
    def _commit(self, request: Request, kind: str, name: str, revision: str) -> Reply:
        """Apply a list of operations, one JSON object per line, to the head of a branch: all or none."""
        repo = self._find(request, kind, name)
        head = repo.sha(repo.branches.get(revision, ""))  # a commit hash is not to be committed to
        files = dict(repo.commits[head])
        for operation in map(json.loads, request.body.splitlines()):
            key, value = operation["key"], operation["value"]
            if key == "header":
                if not head.startswith(value.get("parentCommit", "")):
                    raise HubError(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key in ("deletedFile", "deletedFolder"):
                path = value["path"].rstrip("/") + "/" * (key == "deletedFolder")
                gone = [file for file in files if file == path or (path.endswith("/") and file.startswith(path))]
                if not gone:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
                files = {file: content for file, content in files.items() if file not in gone}
            else:
                raise HubError(501, f"The stand-in does not serve the operation {key}")
        sha = repo.commit(revision, files)
        return Reply({"success": True, "commitOid": sha, "commitUrl": f"{self._page(kind, name)}/commit/{sha}"})

    @_route("GET HEAD", rf"/(?:(?P<kind>datasets)/)?{_NAME}/resolve/{_REVISION}/(?P<path>.+)")
    def _resolve(self, request: Request, kind: str, name: str, revision: str, path: str) -> Reply:
        """Give a file, or the requested range of it, with its commit, hash and size for the client."""
        repo = self._find(request, kind or "models", name)
        sha = repo.sha(revision)
        if path not in repo.commits[sha]:  # with the commit, for the client to remember that the file is missing
            raise HubError(404, "Entry not found", "EntryNotFound", X_Repo_Commit=sha)
        content = repo.commits[sha][path]
        headers = {"ETag": f'"{_blob_id(content)}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if asked is None:
            return Reply(content, headers=headers)
        start, stop = int(asked[1]), min(int(asked[2] or len(content)) + 1, len(content))
        if start >= stop:
            raise HubError(416, "Range not satisfiable", Content_Range=f"bytes */{len(content)}")
        return Reply(content[start:stop], 206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"})


class _Server(ThreadingHTTPServer):
    """Has threads, and room in the queue, for the several connections of a snapshot download."""

    request_queue_size = 64
    hub: HubStandIn


class _Handler(BaseHTTPRequestHandler):
    """Turns HTTP into `Request` and `Reply`; HTTP/1.0, so that no connection outlives its answer, or the test."""

    server: _Server

    def do_GET(self) -> None:
        """Answer one request, whatever its method."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        reply = self.server.hub.answer(Request(self.command, url.path, parse_qs(url.query), self.headers, body))
        if reply.status == BROKEN:
            return
        content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        for key, value in {"Content-Length": str(len(content)), **reply.headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, *_: Any) -> None:
        """Stay quiet: `HubStandIn.requests` is the log."""
