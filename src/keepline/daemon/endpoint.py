"""`/metrics`, `/healthz` and `/readyz` on loopback.

Invariants: listens on loopback only; a request that names another host is refused (DNS rebinding); nothing here holds a
secret. `healthz` says that the loop turns, `readyz` whether each part does its job and why not.
"""

import json
import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from keepline.daemon.parts import Part, Readiness
from keepline.errors import ConfigError
from keepline.relay.address import is_loopback
from keepline.telemetry import event, render_metrics

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["MetricsEndpoint", "parse_listen"]

log = logging.getLogger("keepline.daemon")


def parse_listen(text: str, *, key: str = "telemetry.metrics") -> tuple[str, int]:
    """Host and port of `host:port`.

    Raises:
        ConfigError: no port, or a host that is not loopback.
    """
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    is_port = port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535
    if not separator or not is_port:
        raise ConfigError(
            f'{text!r} is no host:port; write "127.0.0.1:9464", or "" for off', key=key
        )
    if not is_loopback(host):
        raise ConfigError(
            f"{host!r} is not loopback; the numbers stay on this machine, put a proxy in front to publish them",
            key=key,
        )
    return host, int(port)


class MetricsEndpoint(Part):
    """The daemon's HTTP face for machines that watch it.

    Args:
        host: a loopback address.
        port: 0 takes any free one.
        readiness: asks every part.
    """

    name = "metrics"

    def __init__(self, host: str, port: int, readiness: Callable[[], Sequence[Readiness]]) -> None:
        self._host = host
        self._wanted = port
        self._readiness = readiness
        self._runner: web.ServerRunner | None = None
        self.port = port

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{self.port}"

    async def start(self) -> None:
        from aiohttp import web  # only those who want numbers pay for a server

        server = web.Server(self._answer, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._wanted).start()
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {self._host}:{self._wanted}: {os.strerror(error.errno or 0)};"
                ' choose another port, or "" for off',
                key="telemetry.metrics",
            ) from error
        self.port = self._runner.addresses[0][1]
        event(log, logging.INFO, "Metrics served", url=f"{self.url}/metrics")

    async def stop(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    def ready(self) -> tuple[bool, str]:
        return True, f"{self.url}/metrics"

    async def _answer(self, request: "web.BaseRequest") -> "web.StreamResponse":
        from aiohttp import web

        if not _names_loopback(request.host):
            return web.Response(status=421, text=f"this is {self.url}\n")
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, text="GET only\n", headers={"Allow": "GET, HEAD"})
        match request.path:
            case "/metrics":
                kind = "text/plain; version=0.0.4; charset=utf-8"
                return web.Response(body=render_metrics(), headers={"Content-Type": kind})
            case "/healthz":
                return web.Response(text="ok\n")
            case "/readyz":
                return self._ready_response()
        return web.Response(status=404, text="known here: /metrics /healthz /readyz\n")

    def _ready_response(self) -> "web.Response":
        from aiohttp import web

        parts = self._readiness()
        ready = all(part.ready for part in parts)
        body = {
            "ready": ready,
            "parts": [{"name": p.name, "ready": p.ready, "reason": p.reason} for p in parts],
        }
        return web.Response(
            status=200 if ready else 503,
            text=json.dumps(body) + "\n",
            content_type="application/json",
        )

    def __repr__(self) -> str:
        return f"<MetricsEndpoint {self.url}>"


def _names_loopback(netloc: str) -> bool:
    host, _, port = netloc.rpartition(":")
    bare = host if host and port.isdigit() else netloc
    return is_loopback(bare.removeprefix("[").removesuffix("]"))
