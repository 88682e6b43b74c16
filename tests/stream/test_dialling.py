"""From an address to an open transport: negotiation, redirects, fallback, and what each bad address says."""

import asyncio
import json
from collections.abc import Callable

import pytest
from aiohttp import web
from tests.stream.loopback import serving, websocket

from keepline.errors import APIError, ConfigError, PermanentError, TransientError
from keepline.stream.dialling import Dialler
from keepline.stream.tokens import StreamTokens
from keepline.stream.transport_http import TokenPlace

SECRET = "eyJ.very.secret"
ALL = {
    "WebSockets": ["Text", "Binary"],
    "ServerSentEvents": ["Text"],
    "LongPolling": ["Text", "Binary"],
}


def dialler(url: str, **options: object) -> Dialler:
    settings: dict[str, object] = {
        "place": TokenPlace(None),
        "transports": ("websockets", "events", "polling"),
        "skip_negotiation": False,
        "stateful": False,
        "binary": False,
        "headers": None,
        "ssl_context": None,
        "max_message_bytes": 1 << 20,
        "timeout_seconds": 5.0,
    }
    return Dialler(url, **{**settings, **options})  # type: ignore[arg-type]


def reply(**fields: object) -> dict[str, object]:
    offers = fields.pop("offers", ALL)
    return {
        "negotiateVersion": 1,
        "connectionId": "public",
        "connectionToken": "private+/=",
        "availableTransports": [
            {"transport": name, "transferFormats": kinds}
            for name, kinds in offers.items()  # type: ignore[attr-defined]
        ],
        **fields,
    }


class Hub:
    """Negotiates as told, and starts the transports that are not in `broken`."""

    def __init__(self, answer: object = None, *, broken: dict[str, int] | None = None) -> None:
        self.answer = reply() if answer is None else answer
        self.broken = broken or {}
        self.negotiations = 0

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/negotiate"):
            self.negotiations += 1
            answer = self.answer() if callable(self.answer) else self.answer
            if isinstance(answer, web.Response):
                return answer
            return web.json_response({**answer, "connectionToken": f"private{self.negotiations}"})
        kind = self._kind(request)
        if kind in self.broken:
            return web.Response(status=self.broken[kind])
        if kind == "websockets":
            socket = await websocket(request)
            await socket.receive()
            return socket
        content = "text/event-stream" if kind == "events" else "text/plain"
        return web.Response(headers={"Content-Type": content})

    @staticmethod
    def _kind(request: web.Request) -> str:
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return "websockets"
        return "events" if "event-stream" in request.headers.get("Accept", "") else "polling"


async def dialled_name(hub: Hub, **options: object) -> tuple[str, list[str]]:
    async with serving(hub) as site:
        dialled = await dialler(f"{site.url}/hub", **options).dial()
        await dialled.transport.close()
        return dialled.transport.name, site.paths


async def test_the_query_is_kept_and_the_token_of_the_connection_is_its_id() -> None:
    async with serving(Hub()) as site:
        dialled = await dialler(f"{site.url}/hub/?a=1&b=2").dial()
        await dialled.transport.close()
    assert site.paths == [
        "POST /hub/negotiate?a=1&b=2&negotiateVersion=1",
        "GET /hub/?a=1&b=2&id=private1",
    ]
    assert (dialled.connection_id, dialled.stateful) == ("public", False)
    assert "private" not in repr(dialled)


async def test_version_zero_has_one_id_for_both() -> None:
    old = {"connectionId": "only", "availableTransports": reply()["availableTransports"]}
    async with serving(Hub(lambda: web.json_response(old))) as site:
        dialled = await dialler(f"{site.url}/hub").dial()
        await dialled.transport.close()
    assert site.paths[-1] == "GET /hub?id=only"


@pytest.mark.parametrize(
    ("broken", "name", "negotiations"),
    [
        ({}, "websockets", 1),
        ({"websockets": 404}, "events", 2),
        ({"websockets": 200, "events": 500}, "polling", 3),
    ],
)
async def test_a_transport_that_fails_is_followed_by_the_next_with_its_own_negotiation(
    broken: dict[str, int], name: str, negotiations: int
) -> None:
    hub = Hub(broken=broken)
    assert (await dialled_name(hub))[0] == name
    assert hub.negotiations == negotiations


async def test_binary_messages_skip_the_transport_that_carries_text_alone() -> None:
    name, _ = await dialled_name(Hub(broken={"websockets": 404}), binary=True)
    assert name == "polling"


async def test_when_nothing_works_each_transport_is_named() -> None:
    hub = Hub(broken={"websockets": 404, "events": 500, "polling": 503})
    with pytest.raises(TransientError) as caught:
        await dialled_name(hub)
    for words in ("websockets: ", "events: ", "polling: ", "404", "500", "503"):
        assert words in str(caught.value)
    assert caught.value.status == 503


@pytest.mark.parametrize("status", [401, 403, 429])
async def test_a_refusal_of_the_caller_is_not_answered_with_another_transport(status: int) -> None:
    hub = Hub(broken={"websockets": status})
    with pytest.raises(APIError, match=str(status)) as caught:
        await dialled_name(hub)
    assert (caught.value.status, hub.negotiations) == (status, 1)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, PermanentError), (401, PermanentError), (403, PermanentError), (404, PermanentError),
        (405, PermanentError), (409, PermanentError), (429, TransientError), (500, TransientError),
        (502, TransientError), (503, TransientError),
    ],
)  # fmt: skip
async def test_each_status_at_negotiate_is_told_apart(status: int, error: type[APIError]) -> None:
    hub = Hub(lambda: web.Response(status=status, headers={"Retry-After": "12"}))
    with pytest.raises(error) as caught:
        await dialled_name(hub)
    assert (caught.value.status, caught.value.retry_after) == (status, 12.0)
    assert str(caught.value).startswith("POST /hub/negotiate: ")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda: web.Response(text="<!DOCTYPE html><p>x", content_type="text/html"), "web page"),
        (lambda: web.Response(text="hello"), "not JSON"),
        (lambda: web.json_response({"error": "no room"}), "no room"),
        (lambda: web.json_response({"ProtocolVersion": "1.5"}), "old ASP.NET SignalR"),
        (lambda: web.json_response({}), "connectionId"),
        (lambda: web.json_response([]), "not one"),
        (lambda: web.json_response(reply(useStatefulReconnect=True)), "nobody asked"),
        (lambda: web.json_response(reply(offers={"Carrier": ["Text"]})), "no common transport"),
    ],
)  # fmt: skip
async def test_a_reply_that_is_none_says_what_came(
    answer: Callable[[], web.Response], words: str
) -> None:
    with pytest.raises(PermanentError, match=words):
        await dialled_name(Hub(answer))


async def test_a_redirect_takes_its_own_token_and_keeps_the_new_query() -> None:
    async with serving(Hub()) as there:
        to = {"url": f"{there.url}/client/?hub=x", "accessToken": "theirs"}
        async with serving(Hub(lambda: web.json_response(to))) as here:
            place = TokenPlace(StreamTokens(SECRET))
            dialled = await dialler(f"{here.url}/hub", place=place).dial()
            await dialled.transport.close()
    assert here.tokens == [f"Bearer {SECRET}"]
    assert there.paths == [
        "POST /client/negotiate?hub=x&negotiateVersion=1",
        "GET /client/?hub=x&id=private1",
    ]
    assert set(there.tokens) == {"Bearer theirs"}


async def test_a_redirect_without_a_token_does_not_get_ours() -> None:
    async with serving(Hub()) as there:
        to = {"url": f"{there.url}/client"}
        async with serving(Hub(lambda: web.json_response(to))) as here:
            place = TokenPlace(StreamTokens(SECRET))
            dialled = await dialler(f"{here.url}/hub", place=place).dial()
            await dialled.transport.close()
    assert there.tokens == [None, None]


async def test_a_redirect_does_not_get_our_own_secret_fields() -> None:
    fields: list[dict[str, str | None]] = []
    hub = Hub()
    names = ("Authorization", "Cookie", "X-Trace")

    async def note(request: web.Request) -> web.StreamResponse:
        fields.append({name: request.headers.get(name) for name in names})
        return await hub(request)

    own = {"authorization": "Basic secret", "Cookie": "secret=1", "X-Trace": "7"}
    async with serving(note) as there:
        to = {"url": f"{there.url}/client"}

        async def here(request: web.Request) -> web.StreamResponse:
            fields.append({name: request.headers.get(name) for name in names})
            return web.json_response(to)

        async with serving(here) as home:
            dialled = await dialler(f"{home.url}/hub", headers=own).dial()
            await dialled.transport.close()
    assert (
        fields
        == [dict(zip(names, own.values(), strict=True))]
        + [{"Authorization": None, "Cookie": None, "X-Trace": "7"}] * 2
    )


async def test_a_redirect_in_a_circle_ends() -> None:
    hub = Hub()
    async with serving(hub) as site:
        hub.answer = lambda: web.json_response({"url": f"{site.url}/hub"})
        with pytest.raises(PermanentError, match="more than 10 times"):
            await dialler(f"{site.url}/hub").dial()
    assert hub.negotiations == 11


@pytest.mark.parametrize("url", ["nonsense", "http://example.com/hub"])
async def test_a_redirect_to_an_address_that_cannot_be_used_is_the_servers_fault(url: str) -> None:
    hub = Hub(lambda: web.Response(text=json.dumps({"url": url, "accessToken": SECRET})))
    with pytest.raises(PermanentError, match="cannot be used") as caught:
        await dialled_name(hub)
    assert SECRET not in str(caught.value)


async def test_an_http_redirect_at_negotiate_is_not_followed() -> None:
    hub = Hub(lambda: web.Response(status=308, headers={"Location": "https://other.example/"}))
    with pytest.raises(PermanentError, match=r"https://other\.example/"):
        await dialled_name(hub, place=TokenPlace(StreamTokens(SECRET)))


async def test_without_negotiation_there_is_one_request_and_no_id() -> None:
    name, paths = await dialled_name(Hub(), skip_negotiation=True)
    assert (name, paths) == ("websockets", ["GET /hub"])


async def test_the_token_is_asked_for_anew_at_negotiate_and_at_connect() -> None:
    numbers = iter("123456")
    place = TokenPlace(StreamTokens(lambda: f"t{next(numbers)}"), in_query=True)
    async with serving(Hub()) as site:
        made = dialler(f"{site.url}/hub?access_token=old", place=place)
        for _ in range(2):
            await (await made.dial()).transport.close()
    assert [path.partition("access_token=")[2][:2] for path in site.paths] == [
        "t1",
        "t2",
        "t3",
        "t4",
    ]
    assert "old" not in " ".join(site.paths)


async def test_a_reattach_is_one_connect_with_a_fresh_token_and_the_same_id() -> None:
    numbers = iter("123456")
    place = TokenPlace(StreamTokens(lambda: f"t{next(numbers)}"))
    hub = Hub(reply(useStatefulReconnect=True))
    async with serving(hub) as site:
        made = dialler(f"{site.url}/hub", place=place, stateful=True)
        first = await made.dial()
        assert first.stateful
        await first.transport.abort()
        second = await made.reattach(first)
        await second.transport.close()
        hub.broken = {"websockets": 404}
        with pytest.raises(PermanentError, match="404"):
            await made.reattach(second)
    assert "useStatefulReconnect=true" in site.paths[0]
    assert site.paths[1:] == ["GET /hub?id=private1"] * 3
    assert site.tokens == ["Bearer t1", "Bearer t2", "Bearer t3", "Bearer t4"]


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"transports": ()}, "transports"),
        ({"transports": "websockets"}, "transports"),
        ({"transports": ("pigeons",)}, "transports"),
        ({"transports": ("polling",), "skip_negotiation": True}, "skip_negotiation"),
        ({"stateful": True, "skip_negotiation": True}, "skip_negotiation"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        dialler("https://example.com/hub", **options)
    assert caught.value.key == key


@pytest.mark.parametrize("url", ["", "example.com/hub", "ftp://example.com", "https://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="https://"):
        dialler(url)


def test_a_websocket_address_is_as_good() -> None:
    assert "https://example.com:443" in repr(dialler("wss://example.com/hub"))


async def test_each_attempt_begins_at_home_with_our_own_token() -> None:
    async with serving(Hub(broken={"websockets": 503})) as there:
        to = {"url": f"{there.url}/client", "accessToken": "theirs"}
        async with serving(Hub(lambda: web.json_response(to))) as here:
            place = TokenPlace(StreamTokens(SECRET))
            dialled = await dialler(f"{here.url}/hub", place=place).dial()
            await dialled.transport.close()
    assert dialled.transport.name == "events"
    assert here.tokens == [f"Bearer {SECRET}"] * 2


async def test_only_a_websocket_can_be_reattached_whatever_was_granted() -> None:
    hub = Hub(reply(useStatefulReconnect=True), broken={"websockets": 503})
    async with serving(hub) as site:
        dialled = await dialler(f"{site.url}/hub", stateful=True).dial()
        await dialled.transport.close()
    assert (dialled.transport.name, dialled.stateful) == ("events", False)


async def test_an_attempt_that_is_given_up_lets_go_of_its_sockets() -> None:
    asked, gone = asyncio.Event(), asyncio.Event()
    hub = Hub()

    async def slow(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/negotiate"):
            return await hub(request)
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            gone.set()
        raise AssertionError

    runner = web.ServerRunner(web.Server(slow, handler_cancellation=True), shutdown_timeout=0.01)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    dialling = asyncio.ensure_future(dialler(f"http://{host}:{port}/hub").dial())
    await asked.wait()
    dialling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialling
    await gone.wait()
    await runner.cleanup()
