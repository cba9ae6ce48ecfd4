"""An HTTP server on this machine that fails in chosen ways, for tests of downloads."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import sleep


@dataclass
class FileServer:
    """Serves files from memory.

    Attributes:
        files: content by path.
        requests: (path, value of the Range header) of every request.
        cut: bytes after which each connection is cut; one entry per connection.
        ranges: whether ranges are supported.
        etag: the ETag header; None for none.
        status: status codes by path, instead of a file.
        redirects: targets by path.
        types: content types by path.
        length: whether the size is announced.
        stall: seconds without data after the first half of a file.
        most: bytes of an answer; a longer file is sent in parts, asked for or not.
        headers: replaced headers.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    ranges: bool = True
    etag: str | None = '"1"'
    status: dict[str, int] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    length: bool = True
    stall: float = 0.0
    most: int | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> FileServer:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with suppress(ConnectionError):  # the client has left
                    owner.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}{path}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path, wanted = handler.path, handler.headers.get("Range")
        self.requests.append((path, wanted))
        if path in self.redirects:
            handler.send_response(302)
            handler.send_header("Location", self.redirects[path])
            handler.end_headers()
            return
        status = self.status.get(path, 200 if path in self.files else 404)
        if status != 200:
            handler.send_error(status)
            return
        content = self.files[path]
        same = handler.headers.get("If-Range") == self.etag
        start = int(wanted[6:-1]) if wanted and self.ranges and same else 0
        body = content[start:][: self.most]
        is_part = len(body) < len(content)
        handler.send_response(206 if is_part else 200)
        headers = {"Content-Type": self.types.get(path, "application/octet-stream")}
        if is_part:
            headers["Content-Range"] = f"bytes {start}-{start + len(body) - 1}/{len(content)}"
        if self.length:
            headers["Content-Length"] = str(len(body))
        if self.etag:
            headers["ETag"] = self.etag
        for name, value in {**headers, **self.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        body = body[: self.cut.pop(0)] if self.cut else body
        half = len(body) // 2 if self.stall else len(body)
        handler.wfile.write(body[:half])
        if self.stall:
            sleep(self.stall)
            handler.wfile.write(body[half:])
