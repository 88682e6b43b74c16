"""A hub in a process of its own, to be killed; it gets its settings as arguments and says its port."""

import asyncio
import sys
from pathlib import Path

from keepline.hub.opening import GateSettings, IssuerSettings
from keepline.hub.server import AnalyticsHub
from keepline.hub.settings import HubConfig


async def main(directory: Path, port: int, issuer: str, audience: str, secret: str) -> None:
    desk = IssuerSettings(
        issuer=issuer, audiences=(audience,), algorithms=("HS256",), secret=secret
    )
    gate = GateSettings(directory=directory, issuers=(desk,))
    config = HubConfig(port=port, directory=directory, gate=gate, drain_seconds=0)
    async with AnalyticsHub(config) as hub:
        print(hub.port, flush=True)  # noqa: T201
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    where, number, *words = sys.argv[1:]
    asyncio.run(main(Path(where), int(number), *words))
