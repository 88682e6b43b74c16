"""The hub's listener: TLS, limits, host and origin checks, headers and an access log, around whatever is served.

Invariants: a request for another's host name reaches no route; what a route answers never says what stands behind it; a
log line has the path and never the query, a header or a body.
"""

import logging
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import hdrs, web

from keepline.clock import Clock
from keepline.hub.attendance import neighbourhood
from keepline.hub.gate import Gate
from keepline.hub.http_api import No
from keepline.hub.measures import CONNECTIONS, REQUESTS
from keepline.hub.origins import HostRules, OriginRules
from keepline.hub.page import PAGE_POLICY
from keepline.hub.presenting import LONGEST_TOKEN
from keepline.hub.replies import refused, reply
from keepline.hub.upgrade import agree_on_deflate
from keepline.telemetry import event

__all__ = ["Frontage", "tls_context"]

log = logging.getLogger("keepline.hub.access")

SOCKET_PATH = "/ws/analytics"

_FIELD = LONGEST_TOKEN + 1024
_MOST_FIELDS = 64
_API_POLICY = "default-src 'none'; frame-ancestors 'none'"
_WORDS = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
_QUIET = {"/healthz", "/readyz", "/metrics"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Frontage:
    """What stands before the routes.

    Args:
        hosts: the hub's names.
        origins: whose pages may talk to it.
        gate: counts refusals.
        clock: time.
        tls: whether it speaks TLS.
        most_per_address: TCP connections of one address, before any of them has asked for anything.
    """

    def __init__(
        self,
        *,
        hosts: HostRules,
        origins: OriginRules,
        gate: Gate,
        clock: Clock,
        tls: bool,
        most_per_address: int,
    ) -> None:
        self._hosts = hosts
        self._origins = origins
        self._gate = gate
        self._clock = clock
        self._tls = tls
        self._most = most_per_address
        self._sockets: Counter[str] = Counter()
        self._addresses: dict[Any, str] = {}
        self._silent: set[Any] = set()  # who has not asked for anything yet

    def application(self, routes: list[web.RouteDef]) -> web.Application:
        """An application with these routes behind all checks."""
        application = web.Application(middlewares=[self._middleware()])
        application.add_routes(routes)
        application.on_response_prepare.append(self._prepare)
        return application

    def runner(self, application: web.Application, *, handshake_seconds: float) -> web.AppRunner:
        """A runner with limits: heads have so many fields of a size, and come in time."""
        return web.AppRunner(
            application,
            access_log=None,
            logger=_SILENT,
            keepalive_timeout=handshake_seconds,
            max_line_size=_FIELD,
            max_field_size=_FIELD,
            max_headers=_MOST_FIELDS,
            auto_decompress=False,
            lingering_time=1.0,
            shutdown_timeout=2.0,
        )

    def watch(self, server: web.Server) -> None:
        """Count sockets by address: those who connect and say nothing are counted too."""
        made, lost = server.connection_made, server.connection_lost

        def connection_made(handler: Any, transport: Any) -> None:
            made(handler, transport)
            peer = transport.get_extra_info("peername")
            address = neighbourhood(peer[0]) if isinstance(peer, tuple) else ""
            self._sockets[address] += 1
            self._addresses[handler] = address
            if self._sockets[address] > self._most:
                CONNECTIONS.inc("turned_away")
                event(log, logging.INFO, "Too many connections", address=address)
                transport.abort()
            else:
                self._silent.add(handler)

        def connection_lost(handler: Any, exc: BaseException | None = None) -> None:
            lost(handler, exc)
            address = self._addresses.pop(handler, None)
            if handler in self._silent:
                self._silent.discard(handler)
                CONNECTIONS.inc("no_request")
                event(log, logging.INFO, "No request came", address=address)
            if address is not None:
                self._sockets[address] -= 1
                if not self._sockets[address]:
                    del self._sockets[address]

        server.connection_made = connection_made  # type: ignore[method-assign]
        server.connection_lost = connection_lost  # type: ignore[method-assign]

    def _middleware(self) -> Any:
        @web.middleware
        async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
            started = self._clock.boottime()
            self._silent.discard(request.protocol)
            try:
                response = self._barred(request) or await handler(request)
            except Exception as error:
                response = _answer_to(error, request)
            self._record(request, response, self._clock.boottime() - started)
            return response

        return guarded

    def _barred(self, request: web.Request) -> web.Response | None:
        """The answer to what must not reach a route, and to those who only ask whether they may."""
        refusal = self._hosts.refusal(request.headers.getall(hdrs.HOST, ()))
        if refusal is None and request.path != SOCKET_PATH:
            refusal = self._origins.refusal(request.headers.getall(hdrs.ORIGIN, ()))
        if refusal is not None:
            return refused(self._gate.refused(refusal))
        if request.method == hdrs.METH_OPTIONS:
            return web.Response(status=204)
        return None

    async def _prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        headers = response.headers
        agree_on_deflate(request, response)
        headers[hdrs.SERVER] = "keepline"
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Referrer-Policy"] = "no-referrer"
        headers["X-Frame-Options"] = "DENY"
        headers["Cross-Origin-Resource-Policy"] = "same-origin"
        headers["Cross-Origin-Opener-Policy"] = "same-origin"
        page = response.content_type == "text/html" or hdrs.ETAG in headers
        headers["Content-Security-Policy"] = PAGE_POLICY if page else _API_POLICY
        headers.setdefault(hdrs.CACHE_CONTROL, "no-store")
        if self._tls:
            headers["Strict-Transport-Security"] = "max-age=31536000"
        preflight = request.method == hdrs.METH_OPTIONS
        origins = request.headers.getall(hdrs.ORIGIN, ())
        headers.update(self._origins.cors(origins, preflight=preflight))
        if hdrs.ORIGIN in request.headers and hdrs.ACCESS_CONTROL_ALLOW_ORIGIN in headers:
            headers["Cross-Origin-Resource-Policy"] = "cross-origin"

    def _record(self, request: web.Request, response: web.StreamResponse, seconds: float) -> None:
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "other"
        REQUESTS.inc(route, str(response.status))
        level = logging.DEBUG if request.path in _QUIET else logging.INFO
        if not log.isEnabledFor(level):
            return
        event(
            log,
            level,
            "Request",
            method=request.method,
            path=request.path[:256],
            status=response.status,
            address=request.remote or "",
            seconds=round(seconds, 4),
        )


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 and newer with this certificate; blocking.

    Raises:
        OSError: a file cannot be read, or is no certificate or key (`ssl.SSLError`).
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context


def _answer_to(error: Exception, request: web.Request) -> web.Response:
    if isinstance(error, No):
        return error.answer
    if isinstance(error, web.HTTPException):
        return _told(error)
    event(log, logging.ERROR, "Request failed", path=request.path, error=type(error).__name__)
    log.debug("Request failed", exc_info=error)
    return reply(500, {"error": "internal", "message": "the hub failed on this request"})


def _told(error: web.HTTPException) -> web.Response:
    code = _WORDS.get(error.status, "refused")
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
    return reply(error.status, {"error": code, "message": error.reason}, headers=headers)


def _silent() -> logging.Logger:
    """For aiohttp: its lines repeat what strangers sent, tokens in a query among it."""
    return logging.Logger("keepline.hub.http", logging.CRITICAL + 1)


_SILENT = _silent()
