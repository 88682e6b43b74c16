"""The hub over HTTP: sign-in, publishing, history, alerts, who is connected, health and numbers.

Invariants: every answer but the page, `/metrics` and 101 is JSON; every body has a size and a time; a no is a status
and a code.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import hdrs, web

from keepline.clock import Clock, within
from keepline.errors import Closed, ConfigError, KeeplineError, QueueFull
from keepline.hub.access import Action, Identity
from keepline.hub.alert_actions import AlertHandler, perform
from keepline.hub.attendance import Attendance
from keepline.hub.broadcaster import Broadcaster
from keepline.hub.channels import Channel
from keepline.hub.gate import Gate
from keepline.hub.messages import Message, join
from keepline.hub.presenting import presented
from keepline.hub.publishing import (
    LONGEST_WORD,
    Answered,
    Begin,
    Draft,
    Flaw,
    Idempotency,
    answer_body,
    read_drafts,
)
from keepline.hub.refusals import Refusal, RefusalCode
from keepline.hub.registrar import Registrar
from keepline.hub.replies import raw, refused, reply
from keepline.hub.settings import HubConfig

__all__ = ["ALERTS", "HttpApi", "No"]

ALERTS = "alerts"
"""The channel whose messages can be acknowledged."""

_LOGIN_BYTES = 4096
_ACTION_BYTES = 8192
_MOST_HISTORY = 1000
_USUAL_HISTORY = 100


class No(Exception):
    """A request ends here with this answer."""

    def __init__(self, answer: web.Response) -> None:
        super().__init__(answer.status)
        self.answer = answer


class _Login(msgspec.Struct):
    username: Any = None
    password: Any = None


class HttpApi:
    """The routes under `/login` and `/api`.

    Args:
        config: the hub's settings.
        gate: judges users and tokens.
        registrar: numbers, stores and remembers.
        broadcaster: has the clients' places.
        attendance: has the clients.
        clock: time.
    """

    def __init__(
        self,
        config: HubConfig,
        *,
        gate: Gate,
        registrar: Registrar,
        broadcaster: Broadcaster,
        attendance: Attendance,
        clock: Clock,
    ) -> None:
        self._config = config
        self._gate = gate
        self._registrar = registrar
        self._broadcaster = broadcaster
        self._attendance = attendance
        self._clock = clock
        self._keys = Idempotency()
        self._public = [channel.name for channel in config.channels]
        self.alert_handler: AlertHandler | None = None
        self.elsewhere: Callable[[], Awaitable[list[dict[str, Any]]]] = _nobody

    def routes(self) -> list[web.RouteDef]:
        """Every route."""
        return [
            web.post("/login", self.login),
            web.post("/api/publish", self.publish),
            web.get("/api/channels", self.channels),
            web.get("/api/history/{channel}", self.history),
            web.get("/api/alerts", self.alerts),
            web.post("/api/alerts/{id}/{action}", self.act),
            web.get("/api/clients", self.clients),
        ]

    async def login(self, request: web.Request) -> web.Response:
        """`POST /login`: a name and a password, JSON whatever the Content-Type says."""
        body = await self._body(request, _LOGIN_BYTES)
        try:
            given = msgspec.json.decode(body, type=_Login)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise No(_bad_body('{"username": text, "password": text} is needed')) from None
        verdict = await self._gate.sign_in(
            given.username, given.password, address=request.remote or ""
        )
        if isinstance(verdict, Refusal):
            return refused(verdict)
        told = {
            "token": verdict.token,
            "expires_in": round(verdict.expires_in),
            "role": verdict.identity.role,
        }
        return reply(200, told)

    async def publish(self, request: web.Request) -> web.Response:
        """`POST /api/publish`: one message, or one in each line."""
        identity = await self._identity(request)
        key = request.headers.get("Idempotency-Key", "")
        if len(key) > LONGEST_WORD:
            raise No(_bad_body(f"an Idempotency-Key has at most {LONGEST_WORD} characters"))
        body = await self._body(request, self._config.max_publish_bytes)
        if not key:
            return raw(200, await self._published(request, identity, body))
        user = f"{identity.issuer}\n{identity.user}"
        digest = hashlib.sha256(body).digest()
        known = self._keys.begin(user, key, digest, self._clock.boottime())
        if isinstance(known, bytes):
            return raw(200, known)
        if known is not Begin.NEW:
            return _used(known)
        try:
            answer = await self._published(request, identity, body)
        except BaseException:
            self._keys.forget(user, key)
            raise
        self._keys.finish(user, key, answer)
        return raw(200, answer)

    async def channels(self, request: web.Request) -> web.Response:
        """`GET /api/channels`: those of which this user may do something."""
        identity = await self._identity(request)
        told = []
        for name in self._public:
            may = [a.value for a in Action if self._gate.rules.refusal(identity, a, name) is None]
            if may:
                channel = self._registrar.channels[name]
                told.append({**_position(channel), "may": may})
        return reply(200, {"channels": told})

    async def history(self, request: web.Request) -> web.Response:
        """`GET /api/history/{channel}`: the newest messages, `before` an offset."""
        return await self._past(request, request.match_info["channel"])

    async def alerts(self, request: web.Request) -> web.Response:
        """`GET /api/alerts`: the newest alerts."""
        return await self._past(request, ALERTS)

    async def act(self, request: web.Request) -> web.Response:
        """`POST /api/alerts/{id}/{action}`: hand it to whoever keeps the alerts' state."""
        identity = await self._identity(request)
        self._allowed(identity, Action.ACKNOWLEDGE, ALERTS)
        alert, action = request.match_info["id"], request.match_info["action"]
        body = await self._body(request, _ACTION_BYTES)
        done = await perform(self.alert_handler, action, alert, body, user=identity.user)
        return reply(done.status, done.body)

    async def clients(self, request: web.Request) -> web.Response:
        """`GET /api/clients`: who is connected and how they keep up."""
        identity = await self._identity(request)
        refusal = self._gate.rules.oversight_refusal(identity)
        if refusal is not None:
            raise No(refused(self._gate.refused(refusal)))
        told = [*self.here(), *await self.elsewhere()]
        return reply(200, {"clients": told, "total": len(told)})

    def here(self) -> list[dict[str, Any]]:
        """Who is connected to this process."""
        now = self._clock.boottime()
        return [
            self._client(connection, now)
            for connection in self._attendance.connections
            if connection.client is not None
        ]

    # inside

    def _client(self, connection: Any, now: float) -> dict[str, Any]:
        client, identity = connection.client, connection.identity
        outbox, cohort = client.outbox(), client.cohort
        more = cohort or _NOTHING
        return {
            "id": client.id,
            "user": identity.user,
            "role": identity.role,
            "account": identity.account,
            "address": connection.address,
            "connectedAt": connection.connected_at.isoformat(timespec="milliseconds"),
            "expiresAt": identity.expires_at,
            "channels": list(client.channels()),
            "framesPerSecond": round(1 / client.interval, 3),
            "deflate": client.deflate,
            "sent": client.sent + more.sent,
            "conflated": client.conflated + more.conflated,
            "dropped": client.dropped + more.dropped,
            "rateLimited": self._broadcaster.over_rate(client),
            "waiting": 0 if outbox is None else outbox.waiting(),
            "queueBytes": connection.transport.get_write_buffer_size(),
            "slowSeconds": 0 if client.blocked is None else round(now - client.blocked, 3),
        }

    async def _past(self, request: web.Request, name: str) -> web.Response:
        identity = await self._identity(request)
        self._allowed(identity, Action.SUBSCRIBE, name)
        if name not in self._public:
            raise No(_unknown_channel())
        limit = _number(request.query, "limit", 1, _MOST_HISTORY) or _USUAL_HISTORY
        before = _number(request.query, "before", 1, 2**63 - 1)
        try:
            messages = await self._registrar.history(name, limit=limit, before=before)
        except KeeplineError:
            raise No(_unavailable()) from None
        return raw(200, _history(self._registrar.channels[name], messages))

    async def _published(self, request: web.Request, identity: Identity, body: bytes) -> bytes:
        lines = request.content_type != "application/json" or _is_lines(body)
        good, bad = await asyncio.to_thread(read_drafts, body, lines=lines)
        if bad and bad[0].code == "too_many_lines":
            raise No(reply(413, {"error": bad[0].code, "message": bad[0].message}))
        fit = []
        for number, draft in good:
            made = self._fit(identity, number, draft)
            if isinstance(made, Flaw):
                bad.append(made)
            else:
                fit.append((draft, made))
        new = await self._stored([each for each in fit if self._registrar.durable(each[0].channel)])
        new += [  # after those that may fail: who is told 503 comes again with all of them
            self._registrar.publish(each.channel, each.type, text, key=each.key, id=each.id).new
            for each, text in fit
            if not self._registrar.durable(each.channel)
        ]
        bad.sort(key=lambda flaw: flaw.line)
        if not good and len(bad) == 1 and not lines:
            raise No(reply(400, {"error": bad[0].code, "message": bad[0].message}))
        return answer_body(Answered(len(new), new.count(False), bad))

    def _fit(self, identity: Identity, number: int, draft: Draft) -> Flaw | bytes:
        """The data of a line that may be published, or why it may not."""
        channel = draft.channel
        if channel not in self._public:
            return Flaw(number, "unknown_channel", "there is no such channel")
        if self._gate.allows(identity, Action.PUBLISH, channel) is not None:
            return Flaw(number, "forbidden", "this role may not publish there")
        try:
            return self._registrar.prepared(channel, draft.type, draft.data, draft.key, draft.id)
        except ConfigError as error:
            return Flaw(number, "too_large" if "bytes" in str(error) else "bad_data", str(error))

    async def _stored(self, wanted: list[tuple[Draft, bytes]]) -> list[bool]:
        """Put lines on the disk; whether each was new."""
        post = self._registrar.post
        posted = []
        full = False
        for draft, text in wanted:
            try:
                done = post(draft.channel, draft.type, text, key=draft.key, id=draft.id)
            except (QueueFull, Closed):
                full = True
                break
            posted.append(asyncio.wrap_future(done))
        stored = await asyncio.gather(*posted, return_exceptions=True)
        if full or any(isinstance(each, BaseException) for each in stored):
            raise No(_unavailable())
        return [each.new for each in stored if not isinstance(each, BaseException)]

    async def _identity(self, request: web.Request) -> Identity:
        verdict = await self._gate.admit(
            presented(authorization=request.headers.getall(hdrs.AUTHORIZATION, ()))
        )
        if isinstance(verdict, Refusal):
            raise No(refused(verdict))
        return verdict

    def _allowed(self, identity: Identity, action: Action, channel: str) -> None:
        refusal = self._gate.allows(identity, action, channel)
        if refusal is not None and refusal.code is RefusalCode.BAD_CHANNEL:
            raise No(_unknown_channel())
        if refusal is not None:
            raise No(refused(refusal))

    async def _body(self, request: web.Request, most: int) -> bytes:
        if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
            words = "bodies are taken as they are, not compressed"
            raise No(reply(415, {"error": "bad_encoding", "message": words}))
        if (request.content_length or 0) > most:
            raise No(_too_large(most))
        try:
            return await within(
                self._clock, self._config.handshake_timeout_seconds, _read(request, most)
            )
        except TimeoutError:
            words = "the body did not come in time"
            raise No(reply(408, {"error": "timeout", "message": words})) from None


async def _nobody() -> list[dict[str, Any]]:
    return []


class _Nothing:
    sent = conflated = dropped = 0


_NOTHING = _Nothing()


async def _read(request: web.Request, most: int) -> bytes:
    parts = bytearray()
    async for part in request.content.iter_any():
        parts += part
        if len(parts) > most:
            raise No(_too_large(most))
    return bytes(parts)


def _is_lines(body: bytes) -> bool:
    """Whether a body that says it is one object is in fact one in each line."""
    first, _, rest = body.strip().partition(b"\n")
    return bool(rest.strip()) and first.rstrip().endswith(b"}") and rest.lstrip().startswith(b"{")


def _position(channel: Channel) -> dict[str, Any]:
    return {
        "channel": channel.name,
        "policy": channel.policy.value,
        "epoch": channel.epoch,
        "offset": channel.offset,
        "first": channel.first(),
    }


def _history(channel: Channel, messages: list[Message]) -> bytes:
    head = msgspec.json.encode(_position(channel))
    return head[:-1] + b',"messages":' + join(each.text for each in messages) + b"}"


def _number(query: Mapping[str, str], name: str, least: int, most: int) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 19 or not least <= int(text) <= most:
        raise No(_bad_body(f"{name} is a whole number from {least} to {most}"))
    return int(text)


def _used(known: Begin) -> web.Response:
    if known is Begin.RUNNING:
        words = "a request with this Idempotency-Key is being worked on"
        return reply(409, {"error": "in_progress", "message": words}, retry_after=1)
    words = "this Idempotency-Key belongs to another body"
    return reply(422, {"error": "key_reused", "message": words})


def _bad_body(words: str) -> web.Response:
    return reply(400, {"error": "bad_request", "message": words})


def _too_large(most: int) -> web.Response:
    words = f"at most {most} bytes are taken here"
    return reply(413, {"error": "too_large", "message": words})


def _unknown_channel() -> web.Response:
    words = "there is no channel of this name; GET /api/channels lists them"
    return reply(404, {"error": "unknown_channel", "message": words})


def _unavailable() -> web.Response:
    words = "the journal cannot be used just now"
    return reply(503, {"error": "unavailable", "message": words}, retry_after=2)
