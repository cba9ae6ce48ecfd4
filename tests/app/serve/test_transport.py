"""Clients that open connections and send no request do not keep others out."""

from __future__ import annotations

import http.client
import socket
from contextlib import ExitStack
from urllib.parse import urlsplit

from serving import serving


def test_two_hundred_half_open_connections_do_not_keep_others_out(tmp_path):
    """The server accepts 100 connections; an incomplete request is not an answer to anyone."""
    with serving(tmp_path) as server, ExitStack() as stack:
        place = urlsplit(server.address)
        for _ in range(200):
            half = stack.enter_context(socket.create_connection((place.hostname, place.port), 60))
            half.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        for _ in range(3):
            visitor = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
            visitor.request("GET", "/")
            assert visitor.getresponse().status == 200
            visitor.close()
