"""Asking a server for a connection: the URLs, the reply in words, and which transports are worth a try.

Invariants: the query of a URL survives; the connection token is a secret and in no message; a reply never raises,
it becomes `Negotiated`, `Redirect` or `NegotiateError`. Source: ASP.NET Core 9 transport protocol, versions 0 and
1: errors come with status 200, the last of repeated keys counts, unknown keys are ignored, a version above 0 needs
a token.
"""

from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, quote, urlsplit, urlunsplit

import msgspec

from keepline.errors import ConfigError

__all__ = [
    "FORMATS",
    "TRANSPORTS",
    "NegotiateError",
    "Negotiated",
    "Offer",
    "Redirect",
    "choose_transports",
    "connect_url",
    "negotiate_url",
    "read_reply",
    "websocket_url",
    "write_reply",
]

TRANSPORTS: Final = {
    "websockets": "WebSockets",
    "events": "ServerSentEvents",
    "polling": "LongPolling",
}
"""Our names of the transports, and the protocol's."""
FORMATS: Final = {
    "websockets": ("Text", "Binary"),
    "events": ("Text",),
    "polling": ("Text", "Binary"),
}
"""What each transport can carry."""


class Offer(msgspec.Struct, frozen=True, rename="camel"):
    """One transport of a server, in the protocol's words."""

    transport: str
    transfer_formats: tuple[str, ...]


class Negotiated(msgspec.Struct, frozen=True):
    """The server has made a connection.

    Attributes:
        connection_id: its public name.
        connection_token: what goes into `id=`; secret, and not shown.
        transports: what the server offers, in its order.
        version: 0 or 1.
        stateful: a lost transport may be reattached.
        token_lifetime_seconds: how long the access token lives, when the server says so (.NET 11).
    """

    connection_id: str
    connection_token: str
    transports: tuple[Offer, ...] = ()
    version: int = 1
    stateful: bool = False
    token_lifetime_seconds: float | None = None

    def __repr__(self) -> str:
        names = ", ".join(offer.transport for offer in self.transports)
        return f"Negotiated({self.connection_id!r}, transports=[{names}], stateful={self.stateful})"


class Redirect(msgspec.Struct, frozen=True):
    """Negotiate again elsewhere; the access token, when there is one, replaces ours until the next start."""

    url: str
    access_token: str | None = None

    def __repr__(self) -> str:
        origin = urlunsplit((*urlsplit(self.url)[:3], "", ""))
        return f"Redirect({origin!r}, token={'yes' if self.access_token else 'no'})"


class NegotiateError(msgspec.Struct, frozen=True):
    """There is no connection.

    Attributes:
        reason: why, and what to do, in words.
        permanent: the same request will get the same answer.
    """

    reason: str
    permanent: bool = True


class _Reply(msgspec.Struct, rename="camel"):
    error: str | None = None
    url: str | None = None
    access_token: str | None = None
    connection_id: str | None = None
    connection_token: str | None = None
    negotiate_version: int = 0
    available_transports: tuple[Offer, ...] | msgspec.UnsetType = msgspec.UNSET
    use_stateful_reconnect: bool | None = None
    token_lifetime_seconds: float | None = None
    legacy: msgspec.Raw = msgspec.field(name="ProtocolVersion", default=msgspec.Raw())


def negotiate_url(url: str, *, stateful: bool = False, version: int = 1) -> str:
    """Where to ask: `/negotiate` behind the path, the query kept, the version added unless it is there.

    Raises:
        ConfigError: the URL is no HTTP or WebSocket address.
    """
    parts = _parts(url)
    wanted = {"negotiateVersion": str(version)}
    if stateful:
        wanted["useStatefulReconnect"] = "true"
    path = f"{parts.path.rstrip('/')}/negotiate"
    return _with_query(parts._replace(scheme=_http(parts.scheme), path=path), wanted)


def connect_url(url: str, token: str | None = None, *, access_token: str | None = None) -> str:
    """Where a transport connects; a secret as soon as one of the tokens is in it.

    Args:
        url: the endpoint; its query is kept.
        token: the connection token; None when negotiation was skipped.
        access_token: only for servers that read it from the query.

    Raises:
        ConfigError: the URL is no HTTP or WebSocket address.
    """
    parts = _parts(url)
    wanted = {"id": token, "access_token": access_token}
    kept = "&".join(
        part for part in parts.query.split("&") if wanted.get(part.partition("=")[0]) is None
    )
    present = {name: value for name, value in wanted.items() if value is not None}
    return _with_query(parts._replace(scheme=_http(parts.scheme), query=kept), present)


def websocket_url(url: str) -> str:
    """The same address with the scheme of a WebSocket."""
    parts = _parts(url)
    return urlunsplit(parts._replace(scheme=_http(parts.scheme).replace("http", "ws")))


def _http(scheme: str) -> str:
    return scheme.lower().replace("ws", "http")


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or " ", parts.port
        fine = parts.scheme.lower() in ("http", "https", "ws", "wss") and " " not in host
    except ValueError:
        fine = False
    if not fine:
        raise ConfigError(
            "an endpoint's URL begins with https:// and a host name; a port is at most 65535",
            key="url",
        )
    if "@" in parts.netloc:
        raise ConfigError(
            "an endpoint's URL has no user name and no password; give a token, or headers",
            key="url",
        )
    return parts._replace(fragment="")


def _with_query(parts: SplitResult, wanted: dict[str, str]) -> str:
    there = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    added = [f"{name}={quote(text, safe='')}" for name, text in wanted.items() if name not in there]
    return urlunsplit(parts._replace(query="&".join([*filter(None, [parts.query]), *added])))


def read_reply(
    body: bytes, *, content_type: str = "", stateful: bool = False
) -> Negotiated | Redirect | NegotiateError:
    """What a server answered with status 200.

    Args:
        body: the answer.
        content_type: of the answer, for better words.
        stateful: whether stateful reconnect was asked for.
    """
    if body.lstrip()[:1] == b"<" or "html" in content_type.lower():
        return NegotiateError(
            "a web page came instead of a negotiate reply; check the URL's host and path"
        )
    try:
        reply = msgspec.json.decode(body, type=_Reply)
    except msgspec.ValidationError as error:
        return NegotiateError(f"the negotiate reply is not one: {error}; check the URL's path")
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return NegotiateError("the answer to negotiate is not JSON; check the URL's host and path")
    return _judge(reply, stateful)


def _judge(reply: _Reply, stateful: bool) -> Negotiated | Redirect | NegotiateError:
    if reply.legacy:
        return NegotiateError(
            "this server speaks the old ASP.NET SignalR, another protocol; only ASP.NET Core SignalR is supported"
        )
    if reply.error is not None:
        return NegotiateError(f"the server refused to negotiate: {reply.error}")
    if reply.url is not None:
        return Redirect(reply.url, reply.access_token)
    if reply.connection_id is None or reply.available_transports is msgspec.UNSET:
        what = "connectionId" if reply.connection_id is None else "availableTransports"
        return NegotiateError(f"the negotiate reply has no {what!r}; check the URL's path")
    if reply.negotiate_version > 0 and reply.connection_token is None:
        return NegotiateError("the negotiate reply has no 'connectionToken'")
    if reply.use_stateful_reconnect and not stateful:
        return NegotiateError("the server grants stateful reconnect, which nobody asked for")
    token = reply.connection_id if reply.connection_token is None else reply.connection_token
    return Negotiated(
        reply.connection_id,
        token,
        reply.available_transports,
        reply.negotiate_version,
        bool(reply.use_stateful_reconnect),
        reply.token_lifetime_seconds,
    )


def choose_transports(
    offers: Sequence[Offer], wanted: Sequence[str], *, binary: bool
) -> tuple[str, ...] | NegotiateError:
    """The transports to try, one after the other, in the server's order, each after a fresh negotiation.

    Args:
        offers: what the server offers.
        wanted: our names of the transports that may be used.
        binary: the encoding needs binary frames, which server-sent events cannot carry.
    """
    needed = "Binary" if binary else "Text"
    ours = {theirs: name for name, theirs in TRANSPORTS.items()}
    found = dict.fromkeys(
        ours[offer.transport]
        for offer in offers
        if ours.get(offer.transport) in wanted
        and needed in offer.transfer_formats
        and needed in FORMATS[ours[offer.transport]]
    )
    if found:
        return tuple(found)
    offered = ", ".join(f"{o.transport} ({'/'.join(o.transfer_formats)})" for o in offers)
    return NegotiateError(
        f"no common transport: allowed are {', '.join(wanted)} with {needed} frames, "
        f"the server offers {offered or 'none'}"
    )


def write_reply(reply: Negotiated | Redirect | NegotiateError) -> bytes:
    """A server's answer; errors go out with status 200 as well."""
    if isinstance(reply, NegotiateError):
        return msgspec.json.encode({"error": reply.reason})
    if isinstance(reply, Redirect):
        token = {} if reply.access_token is None else {"accessToken": reply.access_token}
        return msgspec.json.encode({"url": reply.url} | token)
    out: dict[str, Any] = {"negotiateVersion": reply.version, "connectionId": reply.connection_id}
    if reply.version > 0:
        out["connectionToken"] = reply.connection_token
    if reply.stateful:
        out["useStatefulReconnect"] = True
    if reply.token_lifetime_seconds is not None:
        out["tokenLifetimeSeconds"] = reply.token_lifetime_seconds
    return msgspec.json.encode(out | {"availableTransports": reply.transports})
