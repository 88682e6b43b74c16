"""The connection under the sandbox's faults: each start that fails is typed, each mishap of a stream is survived."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
import trustme
from tests.stream.loopback import serving
from tests.stream.scripted_hub import ScriptedHub, listen

from keepline.errors import APIError, OutcomeUnknown, PermanentError, TransientError
from keepline.sandbox.server import SandboxServer
from keepline.stream.connection import SignalRConnection
from keepline.stream.events import ConnectionState


@pytest.fixture
async def sandbox() -> AsyncIterator[SandboxServer]:
    async with SandboxServer() as server:
        yield server


def at(sandbox: SandboxServer, **options: Any) -> SignalRConnection:
    return SignalRConnection(f"{sandbox.url}/hubs/test", **options)


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ({"fault": "429", "retry_after": 3, "on": "negotiate"}, TransientError, "429"),
        ({"fault": "html", "status": 200, "on": "negotiate"}, PermanentError, "web page"),
        ({"fault": "5xx", "status": 404, "on": "negotiate"}, PermanentError, "404"),
        ({"fault": "5xx", "status": 503, "on": "negotiate"}, TransientError, "503"),
        ({"fault": "negotiate_error", "description": "no room"}, PermanentError, "no room"),
        ({"fault": "legacy_negotiate"}, PermanentError, "old ASP.NET SignalR"),
        ({"fault": "unasked_stateful"}, PermanentError, "nobody asked for"),
        ({"fault": "handshake_error", "description": "not you"}, PermanentError, "not you"),
    ],
)
async def test_a_start_that_fails_is_typed_and_the_next_one_works(
    sandbox: SandboxServer, fault: dict[str, Any], error: type[APIError], words: str
) -> None:
    sandbox.fault(fault.pop("fault"), **fault)
    with pytest.raises(error, match=words) as caught:
        await at(sandbox).start()
    assert caught.value.retry_after == (3 if words == "429" else None)
    async with at(sandbox) as hub:
        assert await hub.invoke("Add", 1, 2) == 3


async def test_only_what_the_server_offers_is_used(sandbox: SandboxServer) -> None:
    sandbox.fault("offered", transports="ServerSentEvents, LongPolling")
    async with at(sandbox) as hub:
        assert hub.transport == "events"


async def test_a_websocket_that_is_refused_is_replaced_by_another_transport(
    sandbox: SandboxServer,
) -> None:
    sandbox.fault("5xx", status=503, on="websocket")
    async with at(sandbox) as hub:
        assert hub.transport == "events"
        assert await hub.invoke("Add", 1, 2) == 3


async def test_a_redirect_leads_there(sandbox: SandboxServer) -> None:
    sandbox.fault("redirect")
    async with at(sandbox) as hub:
        assert await hub.invoke("Add", 1, 2) == 3


async def test_an_accepted_connection_that_ends_at_once_is_told(sandbox: SandboxServer) -> None:
    sandbox.fault("accept_then_close")
    hub = at(sandbox)
    with suppress(TransientError):  # the end may come in the same breath as the handshake
        await hub.start()
    assert (await hub.closed()).reason in ("close", "cut")
    await hub.stop()


@pytest.mark.parametrize("encoding", ["json", "messagepack"])
@pytest.mark.parametrize(
    "fault",
    [
        {"fault": "split_frames", "size": 3},
        {"fault": "oversize_frame", "bytes": 10_485_760},
        {"fault": "strange_message", "form": "completion"},
        {"fault": "strange_message", "form": "item"},
        {"fault": "strange_message", "form": "call"},
        {"fault": "strange_message", "form": "unknown_type"},
    ],
)
async def test_a_mishap_that_is_allowed_costs_no_message(
    sandbox: SandboxServer, encoding: str, fault: dict[str, Any]
) -> None:
    async with at(sandbox, encoding=encoding) as hub:
        sandbox.fault(
            **{"name": fault["fault"], **{k: v for k, v in fault.items() if k != "fault"}}
        )
        got: asyncio.Queue[int] = asyncio.Queue()
        hub.on("tick", got.put_nowait)
        assert await hub.invoke("Push", "Tick", 5) is None
        assert [await got.get() for _ in range(5)] == list(range(5))
        assert hub.state is ConnectionState.CONNECTED


@pytest.mark.parametrize("encoding", ["json", "messagepack"])
async def test_a_mishap_that_is_not_allowed_ends_it_in_words(
    sandbox: SandboxServer, encoding: str
) -> None:
    sandbox.fault("strange_message", form="not_json")
    async with at(sandbox, encoding=encoding) as hub:
        with pytest.raises(OutcomeUnknown):
            await hub.invoke("Push", "Tick", 5)
        assert (await hub.closed()).reason == "protocol"


@pytest.mark.parametrize(
    ("how", "reason", "welcome"),
    [
        ("abort", "cut", True),
        ("bye", "close", True),
        ("close", "close", False),
        ("close_reconnect", "close", True),
    ],
)
async def test_each_way_to_be_cut_is_told_apart(
    sandbox: SandboxServer, how: str, reason: str, welcome: bool
) -> None:
    async with at(sandbox) as hub:
        sandbox.fault("cut_stream", how=how)
        lost = await hub.closed()
    assert (lost.reason, lost.allow_reconnect) == (reason, welcome)


async def test_a_certificate_that_nobody_signed_is_told_and_ours_is_trusted() -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with serving(ScriptedHub(listen), ssl_context=context) as site:
        url = f"{site.url.replace('https', 'wss')}/hub"
        for skip in (False, True):
            with pytest.raises(PermanentError, match="SSL_CERT_FILE"):
                await SignalRConnection(url, skip_negotiation=skip).start()
        async with SignalRConnection(url, "token", ssl_context=trusting) as hub:
            assert hub.state is ConnectionState.CONNECTED
