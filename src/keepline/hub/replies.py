"""Answers over HTTP: JSON with a code for programs and words for people."""

import math
from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web

from keepline.hub.refusals import Refusal

__all__ = ["raw", "refused", "reply"]


def reply(
    status: int,
    body: Mapping[str, Any],
    *,
    retry_after: float | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """A JSON object."""
    return raw(status, msgspec.json.encode(body), retry_after=retry_after, headers=headers)


def raw(
    status: int,
    body: bytes,
    *,
    retry_after: float | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """JSON that is there already."""
    fields = dict(headers or {})
    if retry_after is not None:
        fields["Retry-After"] = str(max(1, math.ceil(retry_after)))
    return web.Response(status=status, body=body, content_type="application/json", headers=fields)


def refused(refusal: Refusal) -> web.Response:
    """A refusal with its status."""
    headers = {"WWW-Authenticate": 'Bearer realm="keepline"'} if refusal.status == 401 else None
    return reply(
        refusal.status,
        {"error": refusal.code.value, "message": refusal.words},
        retry_after=refusal.retry_after,
        headers=headers,
    )
