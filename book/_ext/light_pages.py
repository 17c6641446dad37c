"""Every page loads only the scripts that it uses, and by its own policy a browser runs no others.

The theme draws icons by a script of 1.5 MB though its style sheets hold the same icons as fonts, and loads the words to
search for on pages that send their search to the search page. Sphinx loads the 1.2 MB that typeset formulas on a page
without any, too, if pages below it have some. The few lines of script that stand in a page are allowed by their hashes:
nothing that comes into it later is run.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from sphinx.application import Sphinx

SCRIPT = r'\s*<script[^>]* src="[^"]*\b(?:{})\.js[^"]*"[^>]*></script>'
NEEDLESS = re.compile(SCRIPT.format("fontawesome"))
SEARCHING = re.compile(SCRIPT.format("searchtools|language_data|searchindex"))
TYPESETTING = re.compile(SCRIPT.format("tex-chtml"))
HANDLER = re.compile(r' onclick="window\.print\(\)"')  # `book.js` listens in its place
INLINE = re.compile(r"<script(?![^>]* src=)[^>]*>(.*?)</script>", re.DOTALL)
META = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')

POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",  # and the hashes of a page's own lines
    "style-src": "'self' 'unsafe-inline'",  # MathJax, and widths that the text gives to pictures
    "img-src": "'self' data:",
    "font-src": "'self'",
    "connect-src": "'self'",  # search fetches its excerpts
    "base-uri": "'none'",
    "form-action": "'self'",
}


def lightened(page: str, searches: bool) -> str:
    """A built page without needless scripts, under its policy. A page that has a policy gets it anew."""
    page = META.sub("", HANDLER.sub("", NEEDLESS.sub("", page)))
    if not searches:
        page = SEARCHING.sub("", page)
    if 'class="math ' not in page:
        page = TYPESETTING.sub("", page)
    hashes = {base64.b64encode(hashlib.sha256(lines.encode()).digest()).decode() for lines in INLINE.findall(page)}
    own = "".join(f" 'sha256-{digest}'" for digest in sorted(hashes))
    policy = "; ".join(f"{kind} {allowed}{own * (kind == 'script-src')}" for kind, allowed in POLICY.items())
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    return re.sub(r'<head>(\s*<meta charset="[^"]*"\s*/?>)?', rf"\g<0>{meta}", page, count=1)


def lighten(app: Sphinx, exception: Exception | None) -> None:
    if exception or app.builder.name != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        if "_static" not in path.parts:
            path.write_text(lightened(path.read_text(encoding="utf-8"), path.stem == "search"), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", lighten, priority=900)  # after what writes pages then
    return {"parallel_read_safe": True, "parallel_write_safe": True}
