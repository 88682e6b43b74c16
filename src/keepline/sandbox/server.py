"""The sandbox on a socket: moves bytes between HTTP and the venue with its market, and applies the faults.

Invariants: it listens on loopback unless told otherwise; a request for another host name or from a foreign page is
refused (DNS rebinding, cross-site posts); every decision is the venue's or the fault table's.
"""

import ipaddress
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.credentials.token import Token
from keepline.errors import ConfigError
from keepline.sandbox.faults import KINDS, Fault, Faults, Plan
from keepline.sandbox.market import Market
from keepline.sandbox.replies import bearer, cut, json_object, refusal, response
from keepline.sandbox.schwab_streamer import SchwabStreamer
from keepline.sandbox.signalr_server import HUB_COUNTERS, SignalRServer, SignalRSettings
from keepline.sandbox.streamer_session import PATH, StreamerTimes
from keepline.sandbox.trading import Rates, Trading
from keepline.sandbox.venue import OAuthVenue, Reply, VenueSettings

__all__ = ["COUNTERS", "Rates", "SandboxServer"]

COUNTERS = (
    "requests",
    "authorizations",
    "sign_ins",
    "token_requests",
    "refreshes",
    "client_credentials",
    "reuses",
    "revocations",
    "logins",
    "validations",
    "logouts",
    "refused",
    "unauthorized",
    "rate_limited",
    "orders",
    "fills",
    "streamer_logins",
    "streamer_commands",
    "streamer_kicked",
    "faults",
    *HUB_COUNTERS,
)
"""What `stats()` and `GET /stats` tell, each from 0 up."""

_BODY_LIMIT = 64 << 10
_PROBLEM = Reply(400, {"title": "One or more validation errors occurred.", "status": 400})
_NO_FORM = Reply(
    400,
    {"error": "invalid_request", "error_description": "the body is not a form that can be read"},
)

Work = Callable[[web.Request, float, Plan], Any]


class SandboxServer:
    """A broker on loopback: Schwab's OAuth and orders, ProjectX's authentication and orders, one market behind both.

    The default app is `sandbox-key` with `sandbox-secret`, the default user `sandbox` with `sandbox-api-key`.

    Args:
        host: a loopback address, unless `allow_remote`.
        port: 0 takes any free one.
        clock: the venue's time and the delays of faults.
        allow_remote: listen where strangers reach it, and answer to any host name.
        rates: how often a client may ask.
        streamer: how long things take at Schwab's streamer.
        signalr: how the hubs behave.
        venue: everything of `VenueSettings`: `seed`, `access_lifetime`, `refresh_lifetime`, `rotate`, `grace` and more.

    Example:
        >>> async with SandboxServer(access_lifetime=60) as sandbox:
        ...     issuer = SchwabIssuer("sandbox-key", "sandbox-secret", base_url=sandbox.url)
        ...     token = await issuer.refresh(sandbox.issue())
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Clock = SYSTEM_CLOCK,
        allow_remote: bool = False,
        rates: Rates | None = None,
        streamer: StreamerTimes | None = None,
        signalr: SignalRSettings | None = None,
        **venue: Any,
    ) -> None:
        if not allow_remote and not _is_loopback(host):
            raise ConfigError(
                f"{host} is not a loopback address: the sandbox knows no real secrets, yet anybody could steer it; "
                "allow_remote=True opens it all the same",
                key="host",
            )
        self.venue = OAuthVenue(VenueSettings(**venue))
        self._market = Market(seed=self.venue.settings.seed)
        self._trading = Trading(
            self._market,
            accepts=lambda token, now: self.venue.accepts(token, now=now),
            boottime=lambda: self._clock.boottime(),
            rates=rates or Rates(),
            counts=self.venue.counts,
        )
        self._host, self._port = host, port
        self._clock = clock
        self._allow_remote = allow_remote
        self._faults = Faults()
        self._streamer = SchwabStreamer(
            self._market,
            accepts=lambda token, now: self.venue.accepts(token, now=now),
            faults=self._faults,
            clock=clock,
            counts=self.venue.counts,
            times=streamer,
        )
        self._runner: web.AppRunner | None = None
        self.signalr = SignalRServer(
            market=lambda: self.market,
            accepts=self.accepts,
            new_token=lambda: self.issue().access_token,
            faults=self._faults,
            clock=clock,
            counts=self.venue.counts,
            seed=self.venue.settings.seed,
            settings=signalr,
        )

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end."""
        return f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{self._port}"

    async def __aenter__(self) -> "SandboxServer":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: the port is taken or may not be used.
        """
        runner = web.AppRunner(self._application(), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError as error:
            await runner.cleanup()
            raise ConfigError(
                f"cannot listen on {self._host}:{self._port} ({os.strerror(error.errno or 0)}): choose another port,"
                " 0 takes any",
                key="port",
            ) from error
        self._runner, self._port = runner, runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening; answers under way are cut."""
        await self._streamer.stop()
        runner, self._runner = self._runner, None
        await self.signalr.stop()
        if runner is not None:
            await runner.cleanup()

    def fault(self, name: str, **parameters: object) -> Fault:
        """Put a fault in force: what `POST /faults` does.

        Raises:
            ConfigError: an unknown fault or parameter; says what is known.
        """
        return self._inject({"fault": name, **parameters})

    def clear_faults(self) -> int:
        """End all faults; how many there were."""
        return self._faults.clear()

    @property
    def market(self) -> Market:
        """The truth about orders, fills and positions, as of now."""
        self._market.advance(self._clock.wall().timestamp())
        return self._market

    def stats(self) -> dict[str, int]:
        """The counters since the start."""
        market = self.market
        self.venue.counts |= {"orders": len(market.orders), "fills": len(market.fills)}
        hubs = self.signalr.stats()
        return {name: hubs.get(name, self.venue.counts[name]) for name in COUNTERS}

    def issue(self) -> Token:
        """The token that a person's sign-in would end with, without the browser."""
        now = self._clock.wall()
        body: Any = self.venue.sign_in(now=now.timestamp()).body
        settings = self.venue.settings
        return Token(
            body["access_token"],
            body["refresh_token"],
            expires_at=now + timedelta(seconds=settings.access_lifetime),
            issued_at=now,
            scope=body["scope"],
            signin_deadline=now + timedelta(seconds=settings.refresh_lifetime),
            extra={"id_token": body["id_token"]},
        )

    def accepts(self, access_token: str) -> bool:
        """Whether the venue lets this access token in just now."""
        return self.venue.accepts(access_token, now=self._clock.wall().timestamp())

    def _inject(self, description: Mapping[str, object]) -> Fault:
        fault = self._faults.add(description, now=self._clock.boottime())
        if fault.name == "revoke":
            self.venue.revoke(str(fault.parameters["what"]))
        self._streamer.fault(fault)
        self.signalr.strike(fault)
        return fault

    def _application(self) -> web.Application:
        app = web.Application(client_max_size=_BODY_LIMIT)
        for method, path, route, work in (
            ("GET", "/v1/oauth/authorize", "authorize", self._authorize),
            ("POST", "/v1/oauth/token", "token", self._token),
            ("POST", "/api/Auth/loginKey", "login", self._login_key),
            ("POST", "/api/Auth/validate", "validate", self._validate),
            ("POST", "/api/Auth/logout", "logout", self._logout),
            ("GET", "/api/Status/ping", "api", self._ping),
        ):
            app.router.add_route(method, path, self._venue_handler(route, work))
        for at in self._trading.routes():
            handler = self._venue_handler(at.route, at.work, at.broker)
            app.router.add_route(at.method, at.path, handler)
        app.router.add_get(PATH, self._guarded(self._streamer.handle))
        for method, path, handler in self.signalr.routes():
            app.router.add_route(method, path, self._guarded(handler))
        app.router.add_post("/faults", self._guarded(self._add_fault))
        app.router.add_get("/faults", self._guarded(self._list_faults))
        app.router.add_delete("/faults", self._guarded(self._clear_faults))
        app.router.add_get("/stats", self._guarded(self._stats))
        return app

    def _guarded(self, handler: Callable[[web.Request], Any]) -> Any:
        async def guarded(request: web.Request) -> web.StreamResponse:
            no = self._refusal(request)
            return no if no is not None else await handler(request)

        return guarded

    def _refusal(self, request: web.Request) -> web.Response | None:
        if self._allow_remote:
            return None
        if not self._is_ours(request.host):
            return refusal(421, f"this is {self.url}, not the host that the request names")
        origin = request.headers.get("Origin")
        if origin is not None and not self._is_ours(urlsplit(origin).netloc):
            return refusal(403, "pages of another site may not talk to the sandbox")
        return None

    def _is_ours(self, netloc: str) -> bool:
        try:
            return urlsplit(f"//{netloc}").hostname in ("127.0.0.1", "::1", "localhost", self._host)
        except ValueError:
            return False

    def _venue_handler(self, route: str, work: Work, broker: str = "") -> Any:
        async def handle(request: web.Request) -> web.StreamResponse:
            self.venue.counts["requests"] += 1
            plan = self._faults.plan(route, now=self._clock.boottime(), broker=broker)
            self.venue.counts["faults"] += len(plan.struck)
            if plan.cut:
                return cut(request)
            now = self._clock.wall().timestamp() + plan.skew
            instead = plan.reply if plan.later is None else None
            reply = instead or await work(request, now, plan)
            self.signalr.pump()
            if plan.delay:
                await self._clock.sleep(plan.delay)
            if plan.lose:
                return cut(request)
            return response(reply, plan.without, now=now)

        return self._guarded(handle)

    async def _authorize(self, request: web.Request, now: float, _: Plan) -> Reply:
        return self.venue.authorize(request.query, now=now)

    async def _token(self, request: web.Request, now: float, plan: Plan) -> Reply:
        try:
            form = {k: v for k, v in (await request.post()).items() if isinstance(v, str)}
        except (ValueError, LookupError):  # not UTF-8, an unknown charset, a broken multipart
            return _NO_FORM
        authorization = request.headers.get("Authorization", "")
        return self.venue.token(form, authorization=authorization, now=now, rotate=plan.rotate)

    async def _login_key(self, request: web.Request, now: float, _: Plan) -> Reply:
        body = await json_object(request)
        return (
            _PROBLEM if body is None else Reply(200, self.venue.sessions.login_key(body, now=now))
        )

    async def _validate(self, request: web.Request, now: float, _: Plan) -> Reply:
        return Reply(200, self.venue.sessions.validate(bearer(request), now=now))

    async def _logout(self, request: web.Request, now: float, _: Plan) -> Reply:
        return Reply(200, self.venue.sessions.logout(bearer(request), now=now))

    async def _ping(self, _: web.Request, __: float, ___: Plan) -> Reply:
        return Reply(200, "pong")

    async def _add_fault(self, request: web.Request) -> web.Response:
        body = await json_object(request)
        if body is None or "fault" not in body:
            return refusal(400, 'a JSON object is needed: {"fault": NAME, …}', known=list(KINDS))
        try:
            fault = self._inject(body)
        except ConfigError as error:
            return refusal(400, str(error), known=list(KINDS))
        return web.json_response(self._told(fault), status=201)

    async def _list_faults(self, _: web.Request) -> web.Response:
        active = self._faults.in_force(now=self._clock.boottime())
        return web.json_response([self._told(fault) for fault in active])

    async def _clear_faults(self, _: web.Request) -> web.Response:
        return web.json_response({"cleared": self.clear_faults()})

    async def _stats(self, _: web.Request) -> web.Response:
        return web.json_response(self.stats())

    def _told(self, fault: Fault) -> dict[str, object]:
        left = fault.until - self._clock.boottime()
        return {
            "fault": fault.name,
            "count": fault.left,
            "seconds": None if left == float("inf") else left,
            "on": list(fault.on),
            **fault.parameters,
        }

    def __repr__(self) -> str:
        return f"<SandboxServer {self.url if self._runner else 'not started'}>"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
