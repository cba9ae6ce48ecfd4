"""Sources that are read once: standard input, pipes, cameras and network streams."""

from __future__ import annotations

import ssl
import sys
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from ..errors import UserError
from .source import Source
from .video_source import Place, file_formats, open_once

_SILENCE = 15.0  # seconds until a peer or a camera that sends nothing is an error

#: Device format of FFmpeg, and its name of a camera, for each platform.
CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}:none"), "win32": ("dshow", "{}")}

# A playlist or a server may name further addresses; files of this machine are not among them.
_PROTOCOLS = {
    "rtsp": "rtsp,rtp,srtp,udp,tcp",
    "rtsps": "rtsp,rtp,srtp,udp,tcp,tls",
    "http": "http,https,httpproxy,tcp,tls,crypto",
    "https": "https,httpproxy,tcp,tls,crypto",
}


def open_pipe(path: str, fps: Fraction | None) -> Source:
    """Opens standard input ("-") or a named pipe: a container, or JPEG images one after the other.

    Raises:
        UserError: if it holds no video, or standard input is a terminal.
    """
    if path == "-" and sys.stdin.isatty():
        raise UserError("-: standard input is a terminal; send a video, e.g. `cat clip.mkv | l2g predict -`")
    file = open(0 if path == "-" else path, "rb", buffering=0, closefd=path != "-")  # noqa: SIM115
    name = "stdin" if path == "-" else Path(path).stem
    return open_once(name, Place(path, file, {"format_whitelist": file_formats()}), fps, live=False)


def open_camera(index: int, fps: Fraction | None) -> Source:
    """Opens a camera of this machine.

    Args:
        index: of the camera, from 0.
        fps: frames per second that the camera is asked for.

    Raises:
        UserError: if there is no such camera.
    """
    kind, device = CAMERAS.get(sys.platform, CAMERAS["linux"])
    name = f"camera {index}"
    options = {} if fps is None else {"framerate": str(fps)}
    target = _directshow(index) if kind == "dshow" else device.format(index)
    return open_once(f"camera{index}", Place(name, target, options, kind, _SILENCE), None, live=True)


def _directshow(index: int) -> str:
    """DirectShow knows cameras by name only."""
    from av import enumerate_input_devices

    cameras: list[Any] = [d for d in enumerate_input_devices("dshow") if "video" in d.media_types]
    if index >= len(cameras):
        raise UserError(f"camera {index}: {len(cameras)} cameras found")
    return f"video={cameras[index].name}"


def open_address(address: str, fps: Fraction | None) -> Source:
    """Opens an rtsp, rtsps, http or https address.

    Raises:
        UserError: if the protocol is another one, or the server sends no video.
    """
    parts = urlsplit(address)
    if parts.scheme not in _PROTOCOLS or not parts.hostname:
        raise UserError(f"{address}: expected an address of {', '.join(f'{p}://' for p in _PROTOCOLS)}")
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # without a password
    options = {"protocol_whitelist": _PROTOCOLS[parts.scheme]}
    if parts.scheme.startswith("rtsp"):
        options["rtsp_transport"] = "tcp"
    authorities = ssl.get_default_verify_paths().cafile
    if parts.scheme.endswith("s"):
        options["tls_verify"] = "1"
        if authorities:
            options["ca_file"] = authorities
    name = PurePosixPath(parts.path).stem or parts.hostname
    live = parts.scheme.startswith("rtsp")
    return open_once(name, Place(shown, address, options, timeout=_SILENCE), fps, live)
