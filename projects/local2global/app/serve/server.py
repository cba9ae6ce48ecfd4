"""The HTTP server of the page: uploads, frames over a websocket, settings, downloads; and who may ask for them."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from fastapi import FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import ClientDisconnect

from ...errors import UserError
from ...files import require_space
from ..predict import L2G
from .camera import CameraFrames, camera_source
from .jobs import FullError, Job, Queue, upload_source
from .limits import Limits
from .page import page

COOKIE = "l2g-token"
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_SEND_SECONDS = 10.0  # a client that does not take a frame within this time is disconnected
_PING_SECONDS = 15.0  # longest silence of a websocket
_SETTINGS_BYTES = 1 << 16
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
_MEDIA = {".mp4": "video/mp4", ".json": "application/json", ".html": "text/html", ".png": "image/png"}


class Refused(Exception):  # noqa: N818 - it is an answer, not an error
    """An answer that ends a request.

    Args:
        status: of HTTP.
        message: one sentence for the visitor.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Metrics:
    """Counters in the form of Prometheus."""

    def __init__(self, queue: Callable[[], dict[str, int]]) -> None:
        self.registry = CollectorRegistry()
        self.frames = Histogram("l2g_frame_seconds", "Seconds per frame of a job.", registry=self.registry)
        self.uploads = Counter("l2g_upload_bytes", "Bytes of uploads.", registry=self.registry)
        self.refused = Counter("l2g_refused", "Refused requests.", ["status"], registry=self.registry)
        jobs = Gauge("l2g_jobs", "Jobs by state.", ["state"], registry=self.registry)
        for state in queue():
            jobs.labels(state).set_function(partial(self._count, queue, state))

    @staticmethod
    def _count(queue: Callable[[], dict[str, int]], state: str) -> float:
        return queue()[state]

    def text(self) -> bytes:
        """The current values."""
        return generate_latest(self.registry)


class Guard:
    """Middleware: hosts, origins and the token are checked before anything is read.

    A page of another site can send requests to a server on this machine.  The `Host` header must name this server
    (DNS rebinding), and the `Origin` of everything but a plain read must be the page itself (CSRF).

    Args:
        app: the application.
        hosts: accepted names in `Host`; None accepts all, which only a token makes safe.
        token: required from every visitor; None for none.
        refuse: called with the status of each refusal.
    """

    def __init__(
        self, app: Any, hosts: frozenset[str] | None, token: str | None, refuse: Callable[[int], None]
    ) -> None:
        self._app, self._hosts, self._token, self._refuse = app, hosts, token, refuse

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is None:
            await self._app(scope, receive, send)
            return
        self._refuse(refusal[0])
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 4000 + refusal[0], "reason": refusal[1]})
        else:
            await PlainTextResponse(refusal[1] + "\n", refusal[0])(scope, receive, send)

    def _refusal(self, scope: Any, headers: dict[str, str]) -> tuple[int, str] | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            name, place = urlsplit(f"//{host}").hostname, urlsplit(origin or "").netloc
        except ValueError:
            return 400, "This is no address."
        if self._hosts is not None and name not in self._hosts:
            return 421, "This server does not answer to that name."
        reads = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        if not reads and origin is not None and place != host:
            return 403, "Requests of other sites are refused."
        if not reads and headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403, "Requests of other sites are refused."
        if self._token is not None and scope["path"] != "/healthz" and not self._knows(scope, headers):
            return 401, "Open the address with the token that l2g serve printed."
        return None

    def _knows(self, scope: Any, headers: dict[str, str]) -> bool:
        assert self._token is not None
        cookies = dict(part.strip().partition("=")[::2] for part in headers.get("cookie", "").split(";"))
        query = dict(part.partition("=")[::2] for part in scope["query_string"].decode("latin-1").split("&"))
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        given = (cookies.get(COOKIE, ""), query.get("token", ""), bearer)
        return any(secrets.compare_digest(text.encode(), self._token.encode()) for text in given)


class Site:
    """The routes of the page.

    Args:
        model: processes all videos.
        root: existing folder for uploads and results; it is empty at the end.
        limits: of what a visitor may ask.
        token: required from every visitor; None for none.
    """

    def __init__(self, model: L2G, root: Path, limits: Limits, token: str | None) -> None:
        self.model, self.limits, self._token = model, limits, token
        self.queue = Queue(model, root, limits, lambda seconds: self.metrics.frames.observe(seconds))
        self.metrics = Metrics(self.queue.states)
        self._html, self._policy = page(model, limits)

    def add_to(self, app: FastAPI) -> None:
        """Registers all routes."""
        for method, path, endpoint in (
            ("GET", "/", self.home),
            ("GET", "/healthz", self.health),
            ("GET", "/metrics", self.numbers),
            ("POST", "/jobs", self.upload),
            ("POST", "/camera", self.camera),
            ("GET", "/jobs/{identity}", self.about),
            ("POST", "/jobs/{identity}", self.settings),
            ("POST", "/jobs/{identity}/stop", self.stop),
            ("DELETE", "/jobs/{identity}", self.delete),
            ("GET", "/jobs/{identity}/objects/{number}.jpg", self.thumbnail),
            ("GET", "/jobs/{identity}/files/{name}", self.file),
        ):
            methods = [method, "HEAD"] if method == "GET" else [method]
            app.add_api_route(path, endpoint, methods=methods, response_model=None)
        app.add_api_websocket_route("/jobs/{identity}/camera", self.camera_frames)
        app.add_api_websocket_route("/jobs/{identity}/frames", self.frames)

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Processes jobs and deletes expired ones while the server runs, and all at its end."""

        async def expire() -> None:
            while True:
                await asyncio.sleep(min(self.limits.keep / 4, 30))
                await asyncio.to_thread(self.queue.expire)

        self.queue.start()
        task = asyncio.create_task(expire())
        yield
        task.cancel()
        await asyncio.to_thread(self.queue.close)

    def refuse(self, status: int) -> None:
        """Counts a refusal."""
        self.metrics.refused.labels(str(status)).inc()

    def _find(self, identity: str) -> Job:
        job = self.queue.get(identity)
        if job is None:
            raise Refused(404, "There is no such video. Results are deleted after a while.")
        return job

    async def home(self, request: Request) -> Response:
        """The page; a token moves from the address into a cookie."""
        if self._token is not None and "token" in request.query_params:
            response = RedirectResponse("/", 303)
            response.set_cookie(COOKIE, self._token, httponly=True, samesite="strict")
            return response
        return HTMLResponse(self._html, headers={"Content-Security-Policy": self._policy})

    async def health(self) -> Response:
        """For load balancers; needs no token."""
        return PlainTextResponse("ok\n")

    async def numbers(self) -> Response:
        """For Prometheus."""
        return PlainTextResponse(self.metrics.text())

    async def upload(self, request: Request) -> Response:
        """Takes a video as the body of the request, and queues it."""
        size = request.headers.get("content-length", "")
        expected = int(size) if size.isdigit() else 0
        if expected > self.limits.upload:
            raise Refused(413, too_large(self.limits))
        folder = reserve(self.queue)
        title = unquote(request.headers.get("x-filename", "video"))[-120:]
        try:
            threshold, classes = selection(self.model, settings_header(request))
            require_space(folder, expected, "the upload")
            suffix = Path(title).suffix.lower()
            path = folder / ("upload" + (suffix if re.fullmatch(r"\.[a-z0-9]{1,5}", suffix) else ""))
            self.metrics.uploads.inc(await receive_file(request, path, self.limits))
        except UserError as error:
            self.queue.release(folder)
            status = 507 if "disk" in str(error) else 400
            raise Refused(status, str(error).replace(str(folder), "")) from error
        except BaseException:
            self.queue.release(folder)
            raise
        job = Job(folder, title, upload_source(path), self.limits, threshold, classes)
        self.queue.add(job)
        return JSONResponse({"id": job.id}, 201)

    async def camera(self) -> Response:
        """Queues a camera, whose frames come over a websocket."""
        folder = reserve(self.queue)
        frames = CameraFrames(self.limits.idle)
        job = Job(folder, "camera", camera_source(frames), self.limits)
        job.camera = frames
        self.queue.add(job)
        return JSONResponse({"id": job.id}, 201)

    async def camera_frames(self, socket: WebSocket, identity: str) -> None:
        """Receives the frames of a camera as JPEG images."""
        await socket.accept()
        job = self.queue.get(identity)
        if job is None or job.camera is None:
            await socket.close(4004, "no such camera")
            return
        try:
            while True:
                data = await asyncio.wait_for(socket.receive_bytes(), self.limits.idle)
                await asyncio.to_thread(job.camera.put, data)
        except UserError as error:
            await socket.close(4000, str(error))
        except KeyError:
            await socket.close(4000, "the camera sent text instead of a JPEG image")
        except (WebSocketDisconnect, TimeoutError):
            pass
        finally:
            job.camera.close()

    async def frames(self, socket: WebSocket, identity: str) -> None:
        """Sends the newest frame of a job until it ends."""
        await socket.accept()
        job = self.queue.get(identity)
        if job is None:
            await socket.close(4004, "no such video")
            return
        tasks = [asyncio.create_task(part) for part in (send_frames(socket, job, self.queue), left(socket))]
        done, unfinished = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in unfinished:
            task.cancel()
        await asyncio.wait(tasks)
        with suppress(WebSocketDisconnect, TimeoutError, RuntimeError):
            for task in done:
                task.result()

    async def about(self, identity: str) -> Response:
        """The state of a job."""
        job = self._find(identity)
        return JSONResponse(job.about(self.queue.position(job)))

    async def settings(self, identity: str, request: Request) -> Response:
        """Changes threshold, classes and pause of a job."""
        job = self._find(identity)
        try:
            content = json.loads(await small_body(request))
            threshold, classes = selection(self.model, content)
            paused = content.get("paused", False)
            if not isinstance(paused, bool):
                raise UserError("paused: expected true or false")
        except UserError as error:
            raise Refused(400, str(error)) from error
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise Refused(400, "Settings are threshold (0 to 1), classes (a list) and paused.") from error
        job.select(threshold, classes, paused)
        return JSONResponse(job.about(self.queue.position(job)))

    async def stop(self, identity: str) -> Response:
        """Ends a job after its current frame."""
        self._find(identity).stop()
        return JSONResponse({})

    async def delete(self, identity: str) -> Response:
        """Ends a job and deletes its files."""
        await asyncio.to_thread(self.queue.delete, self._find(identity))
        return JSONResponse({})

    async def thumbnail(self, identity: str, number: int) -> Response:
        """The first picture of an object."""
        picture = self._find(identity).thumbnails.get(number)
        if picture is None:
            raise Refused(404, "There is no such object.")
        return Response(picture, media_type="image/jpeg")

    async def file(self, identity: str, name: str) -> Response:
        """A result of a job."""
        path = self._find(identity).files.get(name)
        if path is None:
            raise Refused(404, "There is no such file.")
        kind = _MEDIA.get(path.suffix, "application/octet-stream")
        place = "inline" if path.suffix in (".html", ".mp4", ".png") else "attachment"
        headers = {"Content-Disposition": f"{place}; filename*=UTF-8''{quote(name)}"}
        return FileResponse(path, media_type=kind, headers=headers)


def create_app(
    model: L2G,
    root: Path,
    limits: Limits | None = None,
    hosts: frozenset[str] | None = LOOPBACK,
    token: str | None = None,
) -> FastAPI:
    """The application.

    Args:
        model: processes all videos.
        root: existing folder for uploads and results; it is empty at the end.
        limits: of what a visitor may ask.
        hosts: accepted names in `Host`; None accepts all.
        token: required from every visitor; None for none.
    """
    site = Site(model, root, limits or Limits(), token)
    app = FastAPI(
        title="Local2Global", lifespan=site.lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )
    site.add_to(app)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        site.refuse(error.status)
        headers = {"Connection": "close"} if error.status in (408, 413) else {}
        return JSONResponse({"error": str(error)}, error.status, headers)

    @app.exception_handler(ClientDisconnect)
    async def left_early(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody reads it

    @app.middleware("http")
    async def protect(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call(request)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    app.add_middleware(Guard, hosts=hosts, token=token, refuse=site.refuse)
    return app


def reserve(queue: Queue) -> Path:
    """A folder for a new job.

    Raises:
        Refused: if the server is full.
    """
    try:
        return queue.reserve()
    except FullError as error:
        raise Refused(503, str(error)) from error


def settings_header(request: Request) -> dict[str, Any]:
    """Settings that come with an upload, as JSON in a header.

    Raises:
        UserError: if they are damaged.
    """
    try:
        content = json.loads(unquote(request.headers.get("x-settings", "{}")))
        return dict(content)
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError("x-settings: expected a JSON object") from error


def selection(model: L2G, content: dict[str, Any]) -> tuple[float | None, list[str] | None]:
    """Threshold and class names of settings.

    Raises:
        UserError: if a value is out of range or a class is unknown.
    """
    threshold, classes = content.get("threshold"), content.get("classes")
    if threshold is not None and not (type(threshold) in (int, float) and 0 <= threshold <= 1):
        raise UserError("threshold: expected a number in [0, 1]")
    names = {str(entry["name"]) for entry in model.classes}
    known = isinstance(classes, list) and all(isinstance(name, str) and name in names for name in classes)
    if classes is not None and not known:
        raise UserError("classes: expected a list of the model's class names")
    return threshold, classes or None


def too_large(limits: Limits) -> str:
    """The answer to a video above the limit."""
    return f"The video is too large: the limit is {limits.upload / 1e6:,.0f} MB."


async def receive_file(request: Request, path: Path, limits: Limits) -> int:
    """Writes the body of a request to a file; returns its size.

    Raises:
        Refused: if it is empty or too large, or the client sends nothing for a while.
    """
    written, chunks = 0, aiter(request.stream())
    with path.open("wb") as file:
        while True:
            try:
                chunk = await asyncio.wait_for(anext(chunks), limits.idle)
            except StopAsyncIteration:
                break
            except TimeoutError as error:
                raise Refused(408, "The upload stopped.") from error
            written += len(chunk)
            if written > limits.upload:
                raise Refused(413, too_large(limits))
            await asyncio.to_thread(file.write, chunk)
    if written == 0:
        raise Refused(400, "The upload is empty.")
    return written


async def small_body(request: Request) -> bytes:
    """The body of a request.

    Raises:
        Refused: if it is larger than settings can be.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _SETTINGS_BYTES:
            raise Refused(413, "The settings are too large.")
    return body


async def left(socket: WebSocket) -> None:
    """Waits until the client leaves or the server ends; what the client sends is ignored."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


async def send_frames(socket: WebSocket, job: Job, queue: Queue) -> None:
    """Sends the newest state of a job until it has ended: a line of JSON, then the frame as JPEG if it is new.

    Frames that come while the client is still receiving are skipped.
    """
    count, sent = -1, 0
    while True:
        count = await job.changes.after(count, _PING_SECONDS)
        shown, state = job.shown, job.state
        message = json.dumps(job.about(queue.position(job))).encode() + b"\n"
        if shown is not None and shown.frame != sent:
            message += await asyncio.to_thread(shown.jpeg)
            sent = shown.frame
        await asyncio.wait_for(socket.send_bytes(message), _SEND_SECONDS)
        if state in ("done", "failed"):
            await socket.close()
            return
