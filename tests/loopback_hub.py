"""The routes of the Hugging Face Hub that uploads and downloads of a model use, on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass
class HubServer:
    """Repositories in memory.

    Attributes:
        repositories: files by name of the repository.
        private: whether new repositories were requested to be private, by name.
        requests: method and path of every request.
        refuse: status of every request, if it is not 0.
    """

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, Any] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    refuse: int = 0
    _objects: dict[str, bytes] = field(default_factory=dict)

    def __enter__(self) -> HubServer:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                owner.requests.append(f"{self.command} {urlsplit(self.path).path}")
                status, headers, content = owner.answer(self.command, urlsplit(self.path).path, body)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815 - names of the base class

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if self.refuse:
            return self.refuse, {}, b'{"error": "not allowed"}'
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            self.private[name] = wanted.get("private") or wanted.get("visibility") == "private"
            self.repositories.setdefault(name, {})
            return 200, {}, json.dumps({"url": f"{self.endpoint}/{name}"}).encode()
        if path == "/api/validate-yaml":  # of the model card
            return 200, {}, b'{"errors": [], "warnings": []}'
        if path.startswith("/objects/"):
            self._objects[path.rpartition("/")[2]] = body
            return 200, {}, b""
        found = re.match(r"/(?:api/models/)?([\w.-]+/[\w-]+)(.*)", path)
        if found is None or found[1] not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        return self.in_repository(found[1], found[2], body)

    def in_repository(self, name: str, route: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        files = self.repositories[name]
        if route.startswith("/preupload/"):
            large = [entry["path"].endswith(".safetensors") for entry in json.loads(body)["files"]]
            modes = [
                {"path": entry["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
                for entry, lfs in zip(json.loads(body)["files"], large, strict=True)
            ]
            return 200, {}, json.dumps({"files": modes}).encode()
        if route == ".git/info/lfs/objects/batch":
            objects = [
                {**entry, "actions": {"upload": {"href": f"{self.endpoint}/objects/{entry['oid']}"}}}
                for entry in json.loads(body)["objects"]
            ]
            return 200, {}, json.dumps({"transfer": "basic", "objects": objects}).encode()
        if route.startswith("/commit/"):
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self._objects[value["oid"]]
            reply = {
                "commitUrl": f"{self.endpoint}/{name}/commit/1",
                "commitOid": self.sha(name),
                "success": True,
            }
            return 200, {}, json.dumps(reply).encode()
        if route.startswith("/resolve/"):
            file = route.split("/", 3)[3]
            if file not in files:
                return 404, {"X-Error-Code": "EntryNotFound"}, b""
            etag = f'"{hashlib.sha256(files[file]).hexdigest()}"'
            return 200, {"ETag": etag, "X-Repo-Commit": self.sha(name)}, files[file]
        info = {
            "id": name,
            "sha": self.sha(name),
            "siblings": [{"rfilename": file, "size": len(content)} for file, content in files.items()],
            "cardData": {"license": "apache-2.0"},
            "tags": [],
            "private": False,
        }
        return 200, {}, json.dumps(info).encode()

    def sha(self, name: str) -> str:
        return hashlib.sha1(repr(sorted(self.repositories[name].items())).encode()).hexdigest()
