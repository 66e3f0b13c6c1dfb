"""A hundred texts that would run a script if a page took them for markup. Each one sets `window.hacked`."""

from __future__ import annotations

RUN = "window.hacked=1"
_HANDLERS = ("onerror", "onload", "onclick", "onfocus", "onmouseover", "ontoggle", "onbegin", "onanimationstart")
_ELEMENTS = (
    "<img src=x {0}={1}>", "<svg {0}={1}>", "<body {0}={1}>", "<details open {0}={1}>", "<input autofocus {0}={1}>",
    "<video><source {0}={1}></video>", "<svg><animate {0}={1} attributeName=x dur=1s>",
)  # fmt: skip
_BREAKS = ("", '"', "'", '">', "'>", "</title>", "</style>", "</script>", "-->", "]]>", "</textarea>", "</svg>")

TEXTS = [
    *(element.format(handler, RUN) for element in _ELEMENTS for handler in _HANDLERS),
    *(f"{out}<script>{RUN}</script>" for out in _BREAKS),
    *(f'x{quote} onmouseover={quote}{RUN}{quote} autofocus onfocus={quote}{RUN}{quote} y={quote}' for quote in "\"'`"),
    f"<ScRiPt>{RUN}</sCrIpT>",
    f"<script/x>{RUN}</script>",
    f"<<script>{RUN}//<</script>",
    f"<scr<script>ipt>{RUN}</scr</script>ipt>",
    f"&lt;script&gt;{RUN}&lt;/script&gt;<script>{RUN}</script>",
    f"<iframe srcdoc='<script>parent.{RUN}</script>'></iframe>",
    f"<iframe src='javascript:parent.{RUN}'></iframe>",
    f"<object data='data:text/html,<script>{RUN}</script>'></object>",
    f"<embed src='javascript:{RUN}'>",
    f"<a href='javascript:{RUN}'>click</a>",
    f"<form action='javascript:{RUN}'><button>go</button></form>",
    f"<base href='javascript:{RUN};//'><a href=x>click</a>",
    f"<meta http-equiv=refresh content='0;url=javascript:{RUN}'>",
    f"<link rel=import href='data:text/html,<script>{RUN}</script>'>",
    f"<style>@import 'javascript:{RUN}'; * {{ background: url(javascript:{RUN}) }}</style>",
    f"<math><mtext></mtext><mglyph><style></math><img src=x onerror={RUN}>",
    f"<noscript><p title='</noscript><img src=x onerror={RUN}>'>",
    f"<template><script>{RUN}</script></template><script>{RUN}</script>",
    f"<!--><script>{RUN}</script>-->",
    f"[click](javascript:{RUN})",
    f"![x](x){{onerror={RUN}}}",
    f"![x\" onerror=\"{RUN}](x)",
    f"<javascript:{RUN}>",
    f"[x]: javascript:{RUN}\n[x]",
    f"`code` <script>{RUN}</script> `code`",
    f"```\n<script>{RUN}</script>\n```\n<script>{RUN}</script>",
    f"a | b\n--- | ---\n<script>{RUN}</script> | <img src=x onerror={RUN}>",
    f"\\<script>{RUN}</script>",
    f"&#60;script&#62;{RUN}&#60;/script&#62;<script>{RUN}</script>",
]  # fmt: skip
assert len(set(TEXTS)) >= 100
