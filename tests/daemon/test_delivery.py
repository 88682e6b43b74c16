import asyncio
import json
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


def part(
    source: Source,
    *names: str,
    clock: Any = None,
    attempts: int = 1,
) -> DeliveryPart:
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


async def test_a_newer_token_does_not_wait_for_an_older_one(
    source: Source, clean_environment: Path
) -> None:
    came: asyncio.Queue[str] = asyncio.Queue()
    writers: list[asyncio.StreamWriter] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        came.put_nowait(json.loads(await reader.readline())["access_token"])

    default_socket_path("mute").parent.mkdir(mode=0o700)
    server = await asyncio.start_unix_server(silent, default_socket_path("mute"))
    relay = part(source, "mute")
    await relay.start()
    assert await came.get() == "access-1"
    source.publish(token(2))
    assert await came.get() == "access-2"
    await relay.stop()
    server.close()
    for writer in writers:
        writer.close()


async def test_stopping_gives_up_what_waits_after_a_moment(source: Source) -> None:
    clock = ManualClock()
    relay = part(source, "absent", clock=clock, attempts=5)
    await relay.start()
    stopping = asyncio.create_task(relay.stop())
    await clock.run_until(stopping.done)
    assert clock.boottime() < 1.0
    assert "relay bots to 1 targets" in repr(relay)


async def test_what_a_newer_token_took_the_place_of_is_no_news_of_the_bot(source: Source) -> None:
    clock = ManualClock()
    relay = part(source, "late", clock=clock, attempts=2)
    await relay.start()
    await clock.until_asleep()  # the first token waits for its second try
    async with bot("late"):
        source.publish(token(2))
        while not relay.last:  # noqa: ASYNC110 - real bytes come without this clock
            await asyncio.sleep(0)
        clock.advance(2.0)
        await relay.delivered()
    assert relay.status()[0]["outcome"] == "delivered"
    await relay.stop()
