"""What a hub connection is made of, checked before anything is dialled; the parts are made at the start.

Invariants: an option that makes no sense is refused by its name; nothing of aiohttp is loaded before the start; the
token source stays the caller's own object, so that it knows when its last token was refused.
"""

import ssl
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from keepline.errors import ConfigError
from keepline.http import redacted_url
from keepline.stream.binding import Types
from keepline.stream.codec import codec
from keepline.stream.negotiate import connect_url
from keepline.stream.tokens import StreamTokens, StreamTokenSource
from keepline.stream.transport import checked_transports, require_privacy
from keepline.stream.wire import HubWire

if TYPE_CHECKING:
    from keepline.stream.dialling import Dialled, Dialler

__all__ = ["Plan"]


class Plan:
    """The options of one connection; they are described at `SignalRConnection`.

    Attributes:
        name: the address as it may be shown.

    Raises:
        ConfigError: an option makes no sense, or two exclude each other.
    """

    def __init__(
        self,
        url: str,
        access_token: StreamTokenSource | None,
        *,
        encoding: str,
        transports: Sequence[str],
        skip_negotiation: bool,
        token_in: str,
        stateful: bool,
        headers: Mapping[str, str] | None,
        ssl_context: ssl.SSLContext | None,
        max_message_bytes: int,
        **seconds: float,
    ) -> None:
        address = connect_url(url)
        self.name = redacted_url(address)
        if access_token is not None:
            require_privacy(address)
        if token_in not in ("header", "query"):
            raise ConfigError(f"'header' or 'query' is needed, not {token_in!r}", key="token_in")
        for key, value in seconds.items():
            _check_seconds(key, value)
        self._url = url
        self._codec = codec(encoding)
        self._tokens = _tokens(access_token)
        self._in_query = token_in == "query"  # noqa: S105 - a place
        self._max_bytes = max_message_bytes
        self._seconds: dict[str, Any] = dict(seconds)
        self._dialling: dict[str, Any] = {
            "transports": checked_transports(transports, skip=skip_negotiation, stateful=stateful),
            "skip_negotiation": skip_negotiation,
            "stateful": stateful,
            "headers": headers,
            "ssl_context": ssl_context,
        }

    def dialler(self) -> "Dialler":
        """What makes transports."""
        from keepline.stream.dialling import Dialler
        from keepline.stream.transport_http import TokenPlace

        return Dialler(
            self._url,
            place=TokenPlace(self._tokens, self._in_query),
            binary=self._codec.binary,
            max_message_bytes=self._max_bytes,
            timeout_seconds=self._seconds["handshake_timeout"],
            **self._dialling,
        )

    def wire(self, dialled: "Dialled", types: Types) -> HubWire:
        """The conversation over a transport."""
        return HubWire(
            self._codec,
            types=types,
            stateful=dialled.stateful,
            inherent_keep_alive=dialled.transport.inherent_keep_alive,
            max_message_bytes=self._max_bytes,
            **self._seconds,
        )

    def __repr__(self) -> str:  # neither the query nor the token
        return f"<Plan {self.name} {self._codec.name}>"


def _check_seconds(key: str, seconds: float) -> None:
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"a positive number of seconds is needed, not {seconds!r}", key=key)


def _tokens(source: StreamTokenSource | None) -> StreamTokens | None:
    if source is None or isinstance(source, StreamTokens):
        return source
    return StreamTokens(source)
