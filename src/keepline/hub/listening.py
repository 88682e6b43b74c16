"""Sockets that listen, bound before anything else is made, so that the port is known and nobody else can take it."""

import asyncio
import socket
from typing import Any

__all__ = ["bind"]


async def bind(host: str, port: int, *, reuse_port: bool = False) -> list[socket.socket]:
    """A bound socket for each address of a host; all on one port.

    Args:
        host: a name or an address; empty for every address of the machine.
        port: 0 takes any free one.
        reuse_port: let several processes share the port (Linux).

    Raises:
        OSError: the port is taken, or the host is not one of this machine's.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(
        host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    bound: list[socket.socket] = []
    try:
        for family, place in dict.fromkeys((info[0], info[4]) for info in found):
            if family not in (socket.AF_INET, socket.AF_INET6):
                continue
            chosen = port or (bound[0].getsockname()[1] if bound else 0)
            bound.append(_bound(family, (place[0], chosen, *place[2:]), reuse_port))
    except BaseException:
        for each in bound:
            each.close()
        raise
    return bound


def _bound(family: int, place: tuple[Any, ...], reuse_port: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(place)
    except BaseException:
        made.close()
        raise
    return made
