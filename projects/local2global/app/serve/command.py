"""The command `l2g serve`."""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from ...errors import UserError


def serve(
    weights: Annotated[
        str | None,
        typer.Option(help="As for predict: a file, a run, a name, an address; default: maskdino-r50."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free port.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(help="Password of visitors; default: none on this machine, else a random one."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cuda, cuda:1 or cpu; default: first GPU.")] = None,
    max_upload: Annotated[float, typer.Option(min=0.001, help="Largest video, in MB.")] = 500,
    max_seconds: Annotated[float, typer.Option(min=0.1, help="Longest video; the rest is not read.")] = 600,
    max_jobs: Annotated[int, typer.Option(min=1, help="Videos that wait or run.")] = 8,
    keep: Annotated[float, typer.Option(min=1, help="Seconds until results are deleted.")] = 1800,
) -> None:
    """Open a page on which people drop a video, or choose a camera, and watch the masks."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is missing: pip install 'local2global[serve]'") from error
    from ...weights.known import DEFAULT
    from ..predict import L2G
    from .limits import Limits
    from .server import LOOPBACK, create_app
    from .transport import run

    limits = Limits(upload=int(max_upload * 1e6), seconds=max_seconds, jobs=max_jobs, keep=keep)
    local = host in LOOPBACK
    if token is None and not local:
        token = secrets.token_urlsafe(16)
    model = L2G.from_pretrained(weights or DEFAULT, device)
    if model.caveat:
        typer.echo(model.caveat)

    def announce(chosen: int) -> None:
        shown = "localhost" if local else host
        query = f"/?token={token}" if token else "/"
        typer.echo(f"Local2Global is on http://{shown}:{chosen}{query}  (Ctrl-C ends it)")

    with tempfile.TemporaryDirectory(prefix="l2g-serve-", ignore_cleanup_errors=True) as root:
        app = create_app(model, Path(root), limits, LOOPBACK if local else None, token)
        run(app, host, port, limits, announce)
