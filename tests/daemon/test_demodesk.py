"""The demo's desk: what it makes up is what the desk's functions take, and a person can sign in and watch it."""

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from keepline.clock import SYSTEM_CLOCK
from keepline.daemon.demodesk import USER, DemoDesk, DemoHub
from keepline.desk.notify import use_publisher
from keepline.http import HttpSession

STATUS: dict[str, Any] = {
    "credentials": {"demo": {"state": "VALID", "generation": 1}},
    "parts": [{"name": "socket", "ready": True, "reason": "clients: 0"}],
}


class Ear:
    def __init__(self) -> None:
        self.heard: list[tuple[str, str, dict[str, Any]]] = []

    def publish(
        self, channel: str, type: str, data: Any, *, key: str | None = None, id: str | None = None
    ) -> None:
        self.heard.append((channel, type, data))


@pytest.mark.parametrize("seed", range(3))
def test_an_afternoon_of_trading_is_all_well_formed(
    seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    ear = Ear()
    before = use_publisher(ear)
    try:
        desk = DemoDesk(random.Random(seed).random)
        for _ in range(3000):
            desk.step()
    finally:
        use_publisher(before)
    assert not caplog.records  # nothing was invalid
    told = Counter(channel for channel, _, _ in ear.heard)
    assert told["exposure-updates"] == told["routing-metrics"] == 3000
    assert told["lp-performance"] == 9000
    assert 0 < told["alerts"] < 300
    severities = {data["severity"] for _, type_, data in ear.heard if type_ == "alert"}
    assert severities == {"warning", "error"}


async def test_a_screen_sees_the_desk_and_a_person_can_sign_in_until_it_ends(
    clean_environment: Path,
) -> None:
    outer = Ear()
    before = use_publisher(outer)
    try:
        demo = DemoHub(clean_environment / "hub", lambda: STATUS, clock=SYSTEM_CLOCK)
        async with demo.running():
            async with asyncio.timeout(30):
                await demo.seen()
            async with HttpSession() as http:
                good = {"username": USER, "password": demo.password}
                answer = await http.request("POST", f"{demo.url}/login", json=good)
                assert answer.status == 200
                assert answer.json()["role"] == "admin"
                bad = {"username": USER, "password": "something-else-1"}
                answer = await http.request("POST", f"{demo.url}/login", json=bad)
                assert answer.status == 401
                page = await http.request("GET", f"{demo.url}/")
                assert b"<html" in page.body
        assert demo.received["routing-metrics"] > 0
        assert demo.received["system"] > 0
        assert not outer.heard
    finally:
        assert use_publisher(before) is outer
