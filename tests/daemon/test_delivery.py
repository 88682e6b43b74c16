import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from keepline.credentials.token import Token
from keepline.daemon.delivery import DeliveryPart
from keepline.relay.address import default_socket_path
from keepline.relay.receiver import TokenReceiver, TokenReceiverConfig
from keepline.relay.sender import TokenSender
from keepline.testing import ManualClock

Source = Any  # tests/daemon/conftest.py


def token(generation: int) -> Token:
    now = datetime.now(UTC)
    expires = now + timedelta(hours=1)
    return Token(f"access-{generation}", expires_at=expires, issued_at=now, generation=generation)


def bot(name: str) -> TokenReceiver:
    return TokenReceiver(config=TokenReceiverConfig(unix_socket_path=default_socket_path(name)))


def part(source: Source, *names: str, clock: Any = None, attempts: int = 1) -> DeliveryPart:
    targets = [str(default_socket_path(name)) for name in names]
    options = {} if clock is None else {"clock": clock}
    sender = TokenSender(targets, attempts=attempts, retry_delay=1.0, **options)
    return DeliveryPart("bots", sender, source, **options)


async def test_bots_have_the_current_token_at_the_start_and_each_new_one(source: Source) -> None:
    async with bot("a") as a, bot("b") as b:
        relay = part(source, "a", "b")
        await relay.start()
        await relay.delivered()
        assert a.get_latest_token() == b.get_latest_token() == "access-1"
        source.publish(token(2))
        await relay.delivered()
        assert a.get_latest_token() == b.get_latest_token() == "access-2"
        assert relay.ready() == (True, "2 of 2 targets have the newest token")
        await relay.stop()
    assert source.subscribers == []


async def test_before_the_first_token_nothing_is_sent(source: Source) -> None:
    source.current = None
    relay = part(source, "a")
    await relay.start()
    assert relay.status() == [
        {"target": relay.status()[0]["target"], "outcome": "none yet", "reason": ""}
    ]
    await relay.stop()


async def test_an_absent_bot_delays_nobody_and_is_tried_again_with_the_next_token(
    source: Source, clean_environment: Path
) -> None:
    async with bot("here") as here:
        relay = part(source, "here", "absent")
        await relay.start()
        await relay.delivered()
        assert here.get_latest_token() == "access-1"
        assert relay.ready() == (True, "1 of 2 targets have the newest token")
        assert "the bot does not run" in relay.status()[1]["reason"]
        async with bot("absent") as late:
            source.publish(token(2))
            await relay.delivered()
            assert late.get_latest_token() == "access-2"
        await relay.stop()


async def test_a_newer_token_takes_the_place_of_one_that_still_waits(source: Source) -> None:
    clock = ManualClock()
    relay = part(source, "late", clock=clock, attempts=5)
    await relay.start()
    await clock.until_asleep()
    async with bot("late") as late:
        source.publish(token(2))
        await clock.run_until(lambda: late.token_count)
        assert late.get_latest_token() == "access-2"
        finishing = asyncio.create_task(relay.delivered())
        await clock.run_until(finishing.done)
        assert late.token_count == 1
        assert relay.status()[0]["outcome"] == "delivered"
    await relay.stop()


async def test_stopping_gives_up_what_waits_after_a_moment(source: Source) -> None:
    clock = ManualClock()
    relay = part(source, "absent", clock=clock, attempts=5)
    await relay.start()
    stopping = asyncio.create_task(relay.stop())
    await clock.run_until(stopping.done)
    assert clock.boottime() < 1.0
    assert "relay bots to 1 targets" in repr(relay)
