"""The sandbox for the command line: served until a signal, and its faults asked for from outside."""

import json
from collections.abc import Callable, Sequence
from signal import Signals
from typing import Any

from keepline.config import SandboxSettings
from keepline.daemon.run import stop_signals
from keepline.errors import ConfigError
from keepline.http import HttpSession
from keepline.sandbox.server import SandboxServer

__all__ = ["ask_faults", "fault_description", "make_sandbox", "serve_sandbox"]


def make_sandbox(settings: SandboxSettings) -> SandboxServer:
    """The sandbox of the settings, not started."""
    return SandboxServer(
        host=settings.host,
        port=settings.port,
        seed=settings.seed,
        access_lifetime=settings.access_lifetime,
        refresh_lifetime=settings.refresh_lifetime,
        rotate=settings.rotate,
        grace=settings.grace,
    )


async def serve_sandbox(settings: SandboxSettings, *, opened: Callable[[str], object]) -> Signals:
    """Serve until a signal.

    Raises:
        ConfigError: the host is not loopback, or the port is taken.
    """
    with stop_signals() as stop:
        async with make_sandbox(settings) as sandbox:
            opened(sandbox.url)
            return await stop


def fault_description(name: str, parameters: Sequence[str]) -> dict[str, Any]:
    """`["count=2", "on=token,login"]` as the object that `POST /faults` takes; values are JSON where they can be.

    Raises:
        ConfigError: a parameter without `=`.
    """
    described: dict[str, Any] = {"fault": name}
    for parameter in parameters:
        key, separator, text = parameter.partition("=")
        if not separator or not key:
            raise ConfigError(f"{parameter!r} is not KEY=VALUE, for example count=2", key=name)
        try:
            described[key] = json.loads(text)
        except ValueError:
            described[key] = text.split(",") if key == "on" else text
    return described


async def ask_faults(url: str, method: str, body: dict[str, Any] | None = None) -> Any:
    """Talk to a sandbox's fault table.

    Raises:
        TransientError: no sandbox answers there.
        ConfigError: it does not know such a fault; says what it knows.
    """
    async with HttpSession(timeout_seconds=10.0) as http:
        response = await http.request(method, f"{url.rstrip('/')}/faults", json=body)
    answer = response.json()
    if response.status >= 400:
        raise ConfigError(str(answer.get("error", f"the sandbox answered {response.status}")))
    return answer
