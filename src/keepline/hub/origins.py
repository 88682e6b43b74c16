"""Which pages may talk to the hub, and under which names the hub answers.

Invariants: an origin is compared by scheme, host and port, whole; there are no suffixes and no wildcards. A request
without `Origin` is not from a page's script and needs a bearer token like any other; a page cannot leave it out. The
`Host` check is what stops DNS rebinding: a stranger's name that resolves to this machine is not one of ours.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from keepline.errors import ConfigError
from keepline.hub.refusals import Refusal, RefusalCode, refuse

__all__ = ["HostRules", "Origin", "OriginRules", "own_hosts", "own_origins"]

_PORTS = {"http": 80, "https": 443}
_ORIGIN = re.compile(r"(?P<scheme>https?)://(?P<place>[^/?#@\\\s]+)")
_PLACE = re.compile(
    r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?)(?::(?P<port>[1-9][0-9]{0,4}))?"
)


class Origin(NamedTuple):
    """A scheme, a host and a port (RFC 6454)."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        """As a browser writes it: without the default port."""
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}"


class OriginRules:
    """The origins whose pages may connect.

    Args:
        allowed: such as `https://desk.example` or `http://127.0.0.1:7999`.

    Raises:
        ConfigError: one is not an origin: a path, a wildcard, `null`, a user part.
    """

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._allowed = frozenset(_configured(text) for text in allowed)

    def refusal(self, origins: Sequence[str]) -> Refusal | None:
        """None when the request may go on.

        Args:
            origins: every `Origin` field of the request.
        """
        if not origins:
            return None
        parsed = _origin(origins[0]) if len(origins) == 1 else None
        if parsed is None or parsed not in self._allowed:
            return refuse(RefusalCode.BAD_ORIGIN)
        return None

    def cors(self, origins: Sequence[str], *, preflight: bool = False) -> Mapping[str, str]:
        """The header fields that let an allowed page read the answer; for others only `Vary`.

        Credentials are never allowed: the hub has no cookies, a page sends its token itself.

        Args:
            origins: every `Origin` field of the request.
            preflight: whether it is an OPTIONS request that asks before the real one.
        """
        fields = {"Vary": "Origin"}
        if not origins or self.refusal(origins) is not None:
            return fields
        fields["Access-Control-Allow-Origin"] = origins[0]
        if preflight:
            fields |= {
                "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
                "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key",
                "Access-Control-Max-Age": "600",
            }
        return fields

    def __repr__(self) -> str:
        return f"<OriginRules {', '.join(sorted(map(str, self._allowed))) or 'none'}>"


class HostRules:
    """The names under which the hub may be addressed.

    Args:
        allowed: `host` for any port, `host:port` for that one.
        any_address: also take every IP address: no name was resolved for it, so nothing can have been rebound.

    Raises:
        ConfigError: one is not a host.
    """

    def __init__(self, allowed: Iterable[str], *, any_address: bool = False) -> None:
        self._allowed = frozenset(_configured_host(text) for text in allowed)
        self._any_address = any_address

    def refusal(self, hosts: Sequence[str]) -> Refusal | None:
        """None when the request may go on.

        Args:
            hosts: every `Host` field of the request; there must be exactly one.
        """
        place = _place(hosts[0]) if len(hosts) == 1 else None
        if place is None:
            return refuse(RefusalCode.BAD_HOST)
        host, port = place
        if (host, port) in self._allowed or (host, None) in self._allowed:
            return None
        if self._any_address and _is_address(host):
            return None
        return refuse(RefusalCode.BAD_HOST)

    def __repr__(self) -> str:
        names = sorted(host if port is None else f"{host}:{port}" for host, port in self._allowed)
        return f"<HostRules {', '.join(names)}>"


def own_origins(hosts: Iterable[str], port: int, *, tls: bool) -> list[str]:
    """The origins of the hub's own page under these hosts."""
    scheme = "https" if tls else "http"
    return [str(Origin(scheme, _bracketed(host), port)) for host in hosts]


def own_hosts(host: str) -> list[str]:
    """The names of a listener: a loopback or wildcard address goes by all loopback names."""
    loopback = ["127.0.0.1", "localhost", "[::1]"]
    bare = host.strip("[]")
    if host == "localhost" or (_is_address(bare) and ipaddress.ip_address(bare).is_loopback):
        return loopback
    if host == "" or (_is_address(bare) and ipaddress.ip_address(bare).is_unspecified):
        return loopback
    return [*loopback, _bracketed(host)]


def _origin(text: str) -> Origin | None:
    whole = _ORIGIN.fullmatch(text)
    place = _place(whole["place"]) if whole else None
    if whole is None or place is None:
        return None
    host, port = place
    return Origin(whole["scheme"], host, _PORTS[whole["scheme"]] if port is None else port)


def _place(text: str) -> tuple[str, int | None] | None:
    match = _PLACE.fullmatch(text.lower())
    if match is None or not text.isascii():
        return None
    port = None if match["port"] is None else int(match["port"])
    if port is not None and port > 65535:
        return None
    host = match["host"]
    if host.startswith("["):
        if not _is_address(host[1:-1]):
            return None
        host = f"[{ipaddress.ip_address(host[1:-1]).compressed}]"
    return host, port


def _configured(text: str) -> Origin:
    origin = _origin(_in_ascii(text.rstrip("/")).lower())
    if origin is None:
        raise ConfigError(
            f"{text!r} is not an origin: scheme, host and port only, for example https://desk.example:8443; no "
            "wildcards, no null",
            key="allowed_origins",
        )
    return origin


def _configured_host(text: str) -> tuple[str, int | None]:
    host = f"[{text}]" if text.count(":") > 1 and not text.startswith("[") else text
    place = _place(_in_ascii(host))
    if place is None:
        raise ConfigError(
            f"{text!r} is not a host or host:port, for example desk.example", key="allowed_hosts"
        )
    return place


def _in_ascii(text: str) -> str:
    """Names with letters of other alphabets as browsers send them (RFC 3490)."""
    if text.isascii():
        return text
    scheme, separator, rest = text.rpartition("://")
    host, colon, port = rest.partition(":")
    try:
        return f"{scheme}{separator}{host.encode('idna').decode()}{colon}{port}"
    except UnicodeError:
        return text


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _bracketed(host: str) -> str:
    bare = host.strip("[]")
    return f"[{bare}]" if ":" in bare else bare
