"""The page itself: one HTML document without further files."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..predict import L2G
from ..report.page import asset
from .limits import Limits


def page(model: L2G, limits: Limits) -> tuple[str, str]:
    """The document, and its Content-Security-Policy, which allows its own script and this server only."""
    folder = Path(__file__).parent / "templates"
    script = (folder / "serve.js").read_text(encoding="utf-8")
    style = asset("page.css") + (folder / "serve.css").read_text(encoding="utf-8")
    loader = PackageLoader("local2global.app.serve", "templates")
    template = Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template(
        "serve.html"
    )
    html = template.render(
        style=Markup(style),
        script=Markup(script),
        classes=[str(entry["name"]) for entry in model.classes],
        threshold=model.threshold,
        limits=limits,
        caveat=model.caveat,
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src 'self' blob: data:; "
        "media-src 'self'; connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
    )
    return html, policy
