"""HTML pages: the interactive reference at /docs and a page for each kind of error. No CDN, a strict CSP."""

from html import escape
from pathlib import Path
from string import Template

from fastapi import APIRouter
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.staticfiles import StaticFiles

from app.api.http.error_pages import ADVICE
from app.core.catalog import name_hint
from app.core.catalog.describe import quoted
from app.core.errors import CODES, NotFound

STATIC = Path(__file__).parents[1] / "static"
CSP = "default-src 'none'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'; "
STRICT = {"Content-Security-Policy": CSP + "style-src 'self'; form-action 'none'"}
# Swagger UI sets inline styles; scripts come from this service only
SWAGGER = {"Content-Security-Policy": CSP + "script-src 'self'; style-src 'self' 'unsafe-inline'"}
REFERENCE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Anamorph: API reference</title>
<link rel="icon" type="image/png" href="docs/assets/swagger/favicon-32x32.png">
<link rel="stylesheet" href="docs/assets/swagger/swagger-ui.css">
</head>
<body>
<div id="docs"></div>
<script src="docs/assets/swagger/swagger-ui-bundle.js"></script>
<script src="docs/assets/docs.js"></script>
</body>
</html>
"""
PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<link rel="stylesheet" href="/docs/assets/page.css">
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")

router = APIRouter(include_in_schema=False)
assets = StaticFiles(directory=STATIC)


@router.get("/")
def home() -> RedirectResponse:
    return RedirectResponse("/docs")


@router.get("/docs")
def reference() -> HTMLResponse:
    return HTMLResponse(REFERENCE, headers=SWAGGER)


@router.get("/errors")
def errors() -> HTMLResponse:
    links = (
        f'<li><a href="/errors/{code}"><code>{code}</code></a> {escape(CODES[code].title)}</li>' for code in ADVICE
    )
    return _page("Errors", f"<ul>{''.join(links)}</ul>")


@router.get("/errors/{code}")
def error(code: str) -> HTMLResponse:
    if code not in CODES or code not in ADVICE:
        raise NotFound(f"Unknown error code {quoted(code)}.", remedy=name_hint(code, ADVICE))
    kind, advice = CODES[code], ADVICE[code]
    body = f"<p>Status {kind.status}, code <code>{code}</code>.</p><p>{escape(advice)}</p>"
    return _page(kind.title, body + '<p><a href="/errors">All errors</a> · <a href="/docs">API reference</a></p>')


def _page(title: str, body: str) -> HTMLResponse:
    return HTMLResponse(PAGE.substitute(title=escape(title), body=body), headers=STRICT)
