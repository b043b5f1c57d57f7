"""The page for people: static files of ours, read once, sent with a policy that lets nothing foreign in."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from litestar import Request, Response, get
from litestar.params import FromPath

from mmjax.serving.wire import Refused

FOLDER = Path(__file__).parent / "pages"
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
"""The only files that are sent, by their ending."""
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Content-Security-Policy: our own files and requests to this server, no inline code, and no markup made of text."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


class File(NamedTuple):
    """A static file."""

    content: bytes
    media_type: str
    etag: str


def read_files(folder: Path) -> dict[str, File]:
    """Return the files of a folder that may be sent, by name."""
    return {path.name: _file(path) for path in sorted(folder.iterdir()) if path.suffix in TYPES}


def _file(path: Path) -> File:
    content = path.read_bytes()
    return File(content, TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


FILES = read_files(FOLDER)


@get("/", include_in_schema=False)
async def index(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Answer the page."""
    return sent(request, "index.html")


@get("/docs", include_in_schema=False)
async def docs(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Answer the page that shows `/openapi.json`."""
    return sent(request, "docs.html")


@get("/pages/{file:str}", include_in_schema=False)
async def static(request: Request[Any, Any, Any], file: FromPath[str]) -> Response[bytes]:
    """Answer a file of the pages."""
    return sent(request, file)


def sent(request: Request[Any, Any, Any], name: str) -> Response[bytes]:
    """Return the reply with a file: 304 where the client has it, Refused (404) where there is none."""
    file = FILES.get(name)
    if file is None:
        raise Refused(404, "not-found", "pages: no such file")
    headers = HEADERS | {"etag": file.etag}
    if request.headers.get("if-none-match") == file.etag:
        return Response(b"", status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)


ROUTES = (index, docs, static)
