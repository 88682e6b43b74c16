"""The page at `/`: files read once at the start, sent with a policy that lets nothing foreign in.

Invariants: only files of the page's directory are sent, under names known from the start; a request reads nothing.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

from aiohttp import hdrs, web

__all__ = ["PAGE_POLICY", "Page"]

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""The Content-Security-Policy of the page's files."""

_LARGEST = 4 << 20
_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".webmanifest": "application/manifest+json",
    ".json": "application/json",
    ".map": "application/json",
    ".txt": "text/plain",
}
_BARE = (
    b"<!doctype html><html lang=en><meta charset=utf-8><title>Keepline hub</title>"
    b"<h1>Keepline hub</h1><p>The hub is running. Its page is not installed; clients connect to "
    b"<code>/ws/analytics</code>.</p></html>"
)


class _File(NamedTuple):
    body: bytes
    content_type: str
    tag: str


class Page:
    """The static page.

    Args:
        directory: where it lies; a short text stands for it when nothing does.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[str, _File] = {}

    def load(self) -> None:
        """Read the files; blocking."""
        files = {"index.html": _file("index.html", _BARE)}
        for path in sorted(self._directory.rglob("*")):
            name = path.relative_to(self._directory).as_posix()
            hidden = any(part.startswith(".") for part in path.relative_to(self._directory).parts)
            if hidden or path.suffix not in _TYPES or not path.is_file():
                continue
            if path.stat().st_size <= _LARGEST:
                files[name] = _file(name, path.read_bytes())
        self._files = files

    def answer(self, request: web.Request) -> web.Response:
        """The file that a request names; 404 when there is none."""
        name = request.match_info.get("name") or "index.html"
        file = self._files.get(name)
        if file is None:
            raise web.HTTPNotFound
        headers = {hdrs.ETAG: f'"{file.tag}"', hdrs.CACHE_CONTROL: "no-cache"}
        if f'"{file.tag}"' in request.headers.get(hdrs.IF_NONE_MATCH, ""):
            return web.Response(status=304, headers=headers)
        headers[hdrs.CONTENT_TYPE] = file.content_type
        return web.Response(body=file.body, headers=headers)

    def __repr__(self) -> str:
        return f"<Page {len(self._files)} files>"


def _file(name: str, body: bytes) -> _File:
    suffix = "." + name.rpartition(".")[2]
    guessed = _TYPES[suffix]
    text = guessed.startswith("text/") or guessed in ("application/json", "image/svg+xml")
    kind = f"{guessed}; charset=utf-8" if text else guessed
    return _File(body, kind, hashlib.sha256(body).hexdigest()[:32])
