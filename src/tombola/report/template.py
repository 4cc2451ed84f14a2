"""How does the page look? Its template, style and script, filled with what it shows."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

_FILES = Path(__file__).parent / "files"


def render_page(context: Mapping[str, Any]) -> str:
    """The whole page as text; all that it needs is in it, and its script is named by its hash."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FILES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (_FILES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = (_FILES / "report.css").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(
        **context, script=Markup(script), script_hash=digest, style=Markup(style)
    )
