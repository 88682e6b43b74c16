"""What the sandbox's HTTP needs beside aiohttp: tokens and bodies of requests, and the venue's answers as bytes.

Invariants: a body that is no JSON object is told from one, and raises nothing; a cut connection sends no byte.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import msgspec
from aiohttp import web

from keepline.sandbox.venue import Reply

__all__ = ["bearer", "cut", "json_object", "refusal", "response"]


def bearer(request: web.Request) -> str:
    """The token of a request, "" without one."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" else ""


async def json_object(request: web.Request) -> dict[str, Any] | None:
    """The body as a JSON object, None when it is none."""
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def refusal(status: int, message: str, **more: object) -> web.Response:
    """A no of the sandbox itself."""
    return web.json_response({"error": message, **more}, status=status)


def cut(request: web.Request) -> web.Response:
    """End the connection without an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()  # nobody is there to read it


def response(reply: Reply, without: frozenset[str], *, now: float) -> web.Response:
    """An answer of the venue, dated by its clock and without the fields that a fault took."""
    headers = {
        "Date": format_datetime(datetime.fromtimestamp(now, UTC), usegmt=True),
        **reply.headers,
    }
    kind = headers.pop("Content-Type", "application/json")
    if isinstance(reply.body, str):
        kind = "text/html" if reply.body.startswith("<") else "text/plain"
        return web.Response(
            status=reply.status, text=reply.body, content_type=kind, headers=headers
        )
    body: object = reply.body
    if without and isinstance(reply.body, Mapping):
        body = {name: value for name, value in reply.body.items() if name not in without}
    return web.Response(
        status=reply.status, body=msgspec.json.encode(body), content_type=kind, headers=headers
    )
