"""uvicorn, protected from clients that open connections and send no request."""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from ...errors import UserError
from .limits import Limits

_HEADER_SECONDS = 20.0


class ImpatientProtocol(H11Protocol):
    """Closes a connection whose request is not complete in time; an upload has its own limit.

    Where there are too many connections, a new one replaces the oldest that waits for a request, so that clients
    without a request do not keep others out.
    """

    def connection_made(self, transport: Any) -> None:
        """Starts the clock, and makes room."""
        super().connection_made(transport)
        self.begin = self.loop.time()
        self._check()
        if len(self.connections) >= (self.limit_concurrency or math.inf):
            others = [other for other in self.connections if isinstance(other, ImpatientProtocol)]
            idle = [other for other in others if other is not self and other.idle]
            if idle:
                min(idle, key=lambda other: other.begin).transport.abort()

    @property
    def idle(self) -> bool:
        """Whether no request is being answered; headers may be incomplete."""
        return not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete)

    def _check(self) -> None:
        self.loop.call_later(_HEADER_SECONDS, self._close_if_idle, self.cycle)

    def _close_if_idle(self, cycle: object) -> None:
        if self not in self.connections or self.transport.is_closing():
            return
        if self.cycle is cycle and self.idle:
            self.transport.close()
        else:
            self._check()


class _Server(uvicorn.Server):
    """Calls `ready` when the server accepts connections."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts listening."""
        await super().startup(sockets)
        if self.started:
            self._ready()


def _shorten(record: logging.LogRecord) -> bool:
    """Drops the traceback of text that a client has sent."""
    if "UTF-8" in str(record.msg):
        record.exc_info = None
    return True


def run(app: FastAPI, host: str, port: int, limits: Limits, announce: Callable[[int], None]) -> None:
    """Serves until an interrupt.

    Args:
        app: the application.
        host: address to listen on.
        port: 0 for any free port.
        limits: of the server.
        announce: called with the port when the server accepts connections.

    Raises:
        UserError: if the address is in use or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UserError(
            f"{host}:{port}: cannot listen ({error.strerror or error}); choose another --port or --host"
        ) from error
    chosen = int(listener.getsockname()[1])
    config = uvicorn.Config(
        app,
        http=ImpatientProtocol,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=limits.connections,
        timeout_graceful_shutdown=5,
        ws_max_size=4 << 20,
        ws_max_queue=2,
        ws_ping_interval=20.0,
        ws_ping_timeout=20.0,
    )
    logging.getLogger("uvicorn.error").addFilter(_shorten)
    with listener:
        _Server(config, lambda: announce(chosen)).run(sockets=[listener])
