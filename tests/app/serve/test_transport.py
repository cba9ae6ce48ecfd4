"""Clients that open connections and send no request do not keep others out."""

from __future__ import annotations

import http.client
import socket
import time
from contextlib import ExitStack
from urllib.parse import urlsplit

from serving import serving


def test_an_upload_that_is_broken_off_frees_its_place_and_prints_nothing(tmp_path):
    """`serving` fails if the server prints a traceback or keeps a file."""
    with serving(tmp_path, max_jobs=1) as server:
        place = urlsplit(server.address)
        with socket.create_connection((place.hostname, place.port), 60) as visitor:
            visitor.sendall(
                f"POST /jobs HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Length: 9000\r\n\r\nhalf".encode()
            )
            while not list(tmp_path.glob("l2g-serve-*/*/upload")):
                time.sleep(0.05)  # until the upload has begun
        while list(tmp_path.glob("l2g-serve-*/*/upload")):
            time.sleep(0.05)  # until its place is free
        second = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
        second.request("POST", "/jobs", b"no video")
        assert second.getresponse().status == 201
        second.close()


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
