"""The HTTP side of a hub connection: where a token goes, where it never goes, and what each failure says."""

import asyncio
import ssl
from typing import NamedTuple

import pytest
import trustme
from aiohttp import ClientTimeout, web
from tests.stream.loopback import raw_serving, serving

from keepline.errors import APIError, ConfigError, CredentialError, PermanentError, TransientError
from keepline.http import BODY_LIMIT
from keepline.stream.tokens import StreamTokens
from keepline.stream.transport_http import Answer, HttpDoor, TokenPlace, refusal


class Token(NamedTuple):
    access_token: str
    generation: int


SECRET = "eyJ.very.secret"


async def ok(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"fine")


def numbered() -> StreamTokens:
    """Gives t1, t2, … so that one sees how often it was asked."""
    numbers = iter(range(1, 100))
    return StreamTokens(lambda: f"t{next(numbers)}")


async def test_the_token_travels_in_a_header_unless_the_query_was_asked_for() -> None:
    async with serving(ok) as site:
        for in_query in (False, True):
            door = HttpDoor(site.url, token=TokenPlace(StreamTokens("a+b"), in_query))
            await door.request("POST", f"{site.url}/hub")
            await door.request("POST", f"{site.url}/hub?id=1")
            await door.close()
    assert site.requests == [
        ("POST", "/hub", "Bearer a+b"),
        ("POST", "/hub?id=1", "Bearer a+b"),
        ("POST", "/hub?access_token=a%2Bb", None),
        ("POST", "/hub?id=1&access_token=a%2Bb", None),
    ]


async def test_a_request_keeps_the_token_until_a_fresh_one_is_wanted() -> None:
    async with serving(ok) as site:
        door = HttpDoor(site.url, token=TokenPlace(numbered()))
        for fresh in (True, False, False, True):
            await door.request("GET", site.url, fresh_token=fresh)
        await door.close()
    assert site.tokens == ["Bearer t1", "Bearer t1", "Bearer t1", "Bearer t2"]


async def test_a_refused_token_is_replaced_once() -> None:
    async def picky(request: web.Request) -> web.StreamResponse:
        stale = request.headers["Authorization"] == "Bearer t1"
        return web.Response(status=401 if stale else 200)

    async with serving(picky) as site:
        door = HttpDoor(site.url, token=TokenPlace(numbered()))
        assert (await door.request("POST", site.url, body=b"x")).status == 200
        await door.close()
    assert site.tokens == ["Bearer t1", "Bearer t2"]


async def test_a_fresh_token_that_is_refused_is_not_asked_for_again() -> None:
    async def no(request: web.Request) -> web.StreamResponse:
        return web.Response(status=401)

    async with serving(no) as site:
        door = HttpDoor(site.url, token=TokenPlace(numbered()))
        assert (await door.request("POST", site.url, fresh_token=True)).status == 401
        await door.close()
    assert len(site.requests) == 1


async def test_the_token_never_reaches_another_origin() -> None:
    async with serving(ok) as home, serving(ok) as other:
        door = HttpDoor(home.url, token=TokenPlace(StreamTokens(SECRET)))
        door.redirected(other.url, None)
        await door.request("POST", other.url)
        assert other.tokens == [None]
        door.redirected(other.url, "theirs")
        await door.request("POST", other.url)
        assert other.tokens == [None, "Bearer theirs"]
        await door.request("POST", home.url)
        assert home.tokens == [None], "nor does the other origin's token come here"
        await door.close()


async def test_an_http_redirect_is_not_followed() -> None:
    async def elsewhere(request: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": f"https://other.example/x?t={SECRET}"})

    async with serving(elsewhere) as site:
        door = HttpDoor(site.url, token=TokenPlace(StreamTokens(SECRET)))
        answer = await door.request("POST", f"{site.url}/hub")
        await door.close()
    error = refusal("POST", f"{site.url}/hub", answer)
    assert isinstance(error, PermanentError)
    assert "https://other.example/x" in str(error)
    assert SECRET not in str(error)
    assert len(site.requests) == 1


def test_a_redirect_without_a_place_still_has_words() -> None:
    error = refusal("POST", "http://127.0.0.1/hub", Answer(302, {}, b""))
    assert str(error).startswith("POST /hub: 302: the server wants the request elsewhere, ")


@pytest.mark.parametrize("url", ["http://example.com/hub", "http://10.0.0.1/hub"])
def test_a_token_is_not_sent_in_clear_text_beyond_this_machine(url: str) -> None:
    with pytest.raises(ConfigError, match="https"):
        HttpDoor(url, token=TokenPlace(StreamTokens(SECRET)))
    HttpDoor(url)
    door = HttpDoor("https://example.com", token=TokenPlace(StreamTokens(SECRET)))
    with pytest.raises(ConfigError, match="https"):
        door.redirected(url, "theirs")


@pytest.mark.parametrize(
    "url", ["", "example.com/hub", "ftp://example.com", "http://", "http://[::1/x"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="http"):
        HttpDoor(url)


@pytest.mark.parametrize("token", ["a\r\nX: y", "tok en", "é", "a\x00"])
async def test_a_token_that_no_header_can_carry_is_refused_unseen(token: str) -> None:
    door = HttpDoor("http://127.0.0.1:9", token=TokenPlace(StreamTokens(token)))
    with pytest.raises(CredentialError, match="no header can carry") as caught:
        await door.request("GET", "http://127.0.0.1:9")
    assert token not in str(caught.value)


async def test_our_own_headers_go_with_each_request() -> None:
    seen: list[str | None] = []

    async def note(request: web.Request) -> web.StreamResponse:
        seen.extend(request.headers.get(name) for name in ("X-Own", "User-Agent"))
        return web.Response()

    async with serving(note) as site:
        door = HttpDoor(site.url, headers={"X-Own": "1"})
        await door.request("GET", site.url)
        await door.close()
    assert seen[0] == "1"
    assert str(seen[1]).startswith("keepline/")


async def test_a_cookie_keeps_the_requests_of_one_connection_together() -> None:
    seen: list[str | None] = []

    async def balance(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers.get("Cookie"))
        return web.Response(headers={"Set-Cookie": "node=7; Path=/"})

    async with serving(balance) as site:
        fresh = HttpDoor(site.url)
        door = fresh.again()
        await door.request("POST", site.url)
        await door.request("GET", site.url)
        other = door.again()
        await other.request("GET", site.url)
        unrelated = fresh.again()
        await unrelated.request("GET", site.url)
        for each in (door, other, unrelated):
            await each.close()
    assert seen == [None, "node=7", "node=7", None]


async def test_a_body_without_end_is_cut() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"x" * (BODY_LIMIT + 1))

    async with serving(endless) as site:
        door = HttpDoor(site.url)
        with pytest.raises(PermanentError, match=f"larger than {BODY_LIMIT} bytes"):
            await door.request("GET", site.url)
        await door.close()


async def test_a_server_that_does_not_answer_is_a_timeout() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with raw_serving(silent) as url:
        door = HttpDoor(url, timeout_seconds=0.05)
        for attempt in (door.request("GET", url), door.websocket(url, max_bytes=1000)):
            with pytest.raises(TransientError) as caught:
                await attempt
            assert caught.value.category == "timeout"
        await door.close()


async def test_nobody_at_the_address_is_said_with_the_address() -> None:
    async with raw_serving(lambda *_: asyncio.sleep(0)) as url:
        pass
    door = HttpDoor(url)
    for attempt in (
        door.request("GET", f"{url}/hub?id=s3"),
        door.websocket(f"{url}/hub?id=s3", max_bytes=1),
    ):
        with pytest.raises(
            TransientError, match=r"GET /hub: cannot connect to 127.0.0.1"
        ) as caught:
            await attempt
        assert "s3" not in str(caught.value)
    await door.close()


async def test_a_server_that_hangs_up_is_told_and_not_asked_twice() -> None:
    calls = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        while await reader.readuntil(b"\r\n\r\n"):
            calls += 1
            if calls == 2:
                return
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with raw_serving(hang_up) as url:
        door = HttpDoor(url)
        assert (await door.request("GET", url)).status == 200
        with pytest.raises(TransientError, match="closed the connection without an answer"):
            await door.request("GET", url)
        await door.close()
    assert calls == 2


async def test_an_unknown_name_is_said() -> None:
    door = HttpDoor("https://nowhere.invalid")
    with pytest.raises(TransientError, match=r"nowhere\.invalid"):
        await door.request("GET", "https://nowhere.invalid")
    await door.close()


async def test_a_certificate_that_nobody_signed_is_told_with_advice() -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with serving(ok, ssl_context=context) as site:
        door = HttpDoor(site.url)
        for attempt in (door.request("GET", site.url), door.websocket(site.url, max_bytes=1)):
            with pytest.raises(PermanentError, match="SSL_CERT_FILE") as caught:
                await attempt
            assert caught.value.category == "network"
        await door.close()
        trusted = HttpDoor(site.url, ssl_context=trusting)
        assert (await trusted.request("GET", site.url)).body == b"fine"
        await trusted.abort()
        await trusted.close()


async def test_plain_http_where_tls_is_expected_is_a_typed_failure() -> None:
    async with serving(ok) as site:
        door = HttpDoor(site.url.replace("http", "https"))
        with pytest.raises(APIError) as caught:
            await door.request("GET", site.url.replace("http", "https"))
        assert caught.value.category == "network"
        await door.close()


async def test_an_answer_that_breaks_off_while_it_is_read_is_mapped() -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await writer.drain()

    async with raw_serving(half) as url:
        door = HttpDoor(url)
        with pytest.raises(TransientError, match="in the middle"):
            async with door.opened("GET", url, ClientTimeout(total=5)) as answer:
                await answer.read()
        await door.close()


async def test_no_repr_holds_the_token() -> None:
    door = HttpDoor("https://example.com/hub?x=s3cret", token=TokenPlace(StreamTokens(SECRET)))
    assert SECRET not in repr(door)
    assert "s3cret" not in repr(door)
    await door.abort()


async def test_behind_a_redirect_only_its_own_token_is_used() -> None:
    async with serving(ok) as home, serving(ok) as there:
        door = HttpDoor(home.url, token=TokenPlace(StreamTokens("ours")))
        await door.request("GET", home.url)
        door.redirected(there.url, "theirs")
        await door.request("GET", there.url)
        await door.close()
    assert (home.tokens, there.tokens) == (["Bearer ours"], ["Bearer theirs"])


async def test_the_token_source_learns_of_a_refusal() -> None:
    class Tokens:
        asked: list[int | None] = []  # noqa: RUF012

        async def get(self, *, newer_than: int | None = None) -> Token:
            self.asked.append(newer_than)
            return Token(f"t{len(self.asked)}", len(self.asked))

    async def picky(request: web.Request) -> web.StreamResponse:
        return web.Response(status=401 if request.headers["Authorization"] == "Bearer t1" else 200)

    tokens = Tokens()
    async with serving(picky) as site:
        door = HttpDoor(site.url, token=TokenPlace(StreamTokens(tokens)))
        assert (await door.request("GET", site.url)).status == 200
        await door.close()
    assert tokens.asked == [None, 1]
