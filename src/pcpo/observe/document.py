"""A self-contained HTML page: the style of the report, a policy that lets nothing else in, no request to anywhere."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from pcpo.observe.markup import Child, Safe, element, join


def document(title: str, *body: Child, script: str | None = None) -> str:
    """The whole page; `script` names a file of this package."""
    style, code = _package_file("report.css"), _package_file(script) if script else None
    allowed = _hash(code) if code else "'none'"
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; "
        f"script-src {allowed}; base-uri 'none'; form-action 'none'"
    )
    preamble = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", style),
    )
    whole = element("body", *body, element("script", code) if code else None)
    return join((Safe("<!doctype html>\n"), element("html", preamble, whole, lang="en")))


def _package_file(name: str) -> Safe:
    return Safe(files("pcpo.observe").joinpath(name).read_text(encoding="utf-8"))


def _hash(content: str) -> str:
    """The policy's source expression for one inline style or script (CSP level 2)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode('utf-8')).digest()).decode('ascii')}'"
