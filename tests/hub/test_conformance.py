"""RFC 6455 and RFC 7692 on the wire, with wsproto as a strict peer and frames that no good client would send."""

import os
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.hub.house import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Peer,
    deflated,
    frame,
    handshake,
    raw,
    settings,
    token,
)
from wsproto.extensions import PerMessageDeflate

from keepline.hub.deflate import ANSWER
from keepline.hub.server import AnalyticsHub

PING_REQUEST = '{"action":"ping","id":"ünï→𝄞"}'.encode()
MARK = "ünï→𝄞"


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[AnalyticsHub]:
    async with AnalyticsHub(settings(tmp_path)) as hub:
        yield hub


@pytest.fixture
async def peer(hub: AnalyticsHub) -> AsyncIterator[Peer]:
    async with await Peer.open(hub.port, token()) as peer:
        assert peer.status == 101
        await peer.kind("welcome")
        yield peer


# the handshake


@pytest.mark.parametrize(
    "connection", ["keep-alive, Upgrade", "Upgrade", "upgrade", "keep-alive,upgrade , x"]
)
async def test_connection_is_a_list_as_firefox_sends_it(hub: AnalyticsHub, connection: str) -> None:
    answer = await raw(hub.port, handshake(hub.port, token(), connection=connection))
    assert answer.status == 101
    assert answer.fields["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert answer.fields["upgrade"].lower() == "websocket"
    assert "sec-websocket-extensions" not in answer.fields
    assert "sec-websocket-protocol" not in answer.fields


@pytest.mark.parametrize(
    ("changes", "statuses"),
    [
        ({"sec_websocket_version": "8"}, {426}),
        ({"sec_websocket_version": None}, {426}),
        ({"sec_websocket_key": None}, {400}),
        ({"sec_websocket_key": "dG9vIHNob3J0"}, {400}),
        ({"sec_websocket_key": "this is no base64 text =="}, {400}),
        ({"upgrade": "h2c"}, {400, 426}),
        ({"upgrade": None}, {400, 426}),
        ({"connection": "keep-alive"}, {400, 426}),
        ({"connection": None}, {400, 426}),
        ({"host": None}, {400, 421}),
        ({"first": "POST /ws/analytics HTTP/1.1", "content_length": "0"}, {405}),
        ({"first": "GET /ws/analytics HTTP/1.0"}, {400, 426, 505}),
    ],
    ids=str,
)
async def test_what_is_no_handshake_is_refused(
    hub: AnalyticsHub, changes: dict[str, str | None], statuses: set[int]
) -> None:
    answer = await raw(hub.port, handshake(hub.port, token(), **changes))
    assert answer.status in statuses
    if "sec_websocket_version" in changes:
        assert answer.fields["sec-websocket-version"] == "13"


async def test_the_subprotocol_that_is_answered_is_the_name_and_never_the_token(
    hub: AnalyticsHub,
) -> None:
    offered = ["keepline.v1", f"bearer.{token()}"]
    async with await Peer.open(hub.port, subprotocols=offered) as peer:
        assert (peer.status, peer.subprotocol) == (101, "keepline.v1")
        await peer.alive()


# control frames


@pytest.mark.parametrize("payload", [b"", b"x", b"\x00\xff\xfe", b"p" * 125])
async def test_a_ping_is_answered_with_its_payload(peer: Peer, payload: bytes) -> None:
    peer.write(frame(PING, payload))
    while not peer.pongs:
        await peer.read()
    assert peer.pongs == [payload]


async def test_an_unasked_pong_is_ignored(peer: Peer) -> None:
    peer.write(frame(PONG), frame(PONG, b"unasked"))
    await peer.alive()


async def test_control_frames_may_come_between_fragments(peer: Peer) -> None:
    peer.write(
        frame(TEXT, PING_REQUEST[:5], fin=False),
        frame(PING, b"between"),
        frame(CONTINUATION, PING_REQUEST[5:9], fin=False),
        frame(PONG, b"unasked"),
        frame(CONTINUATION, PING_REQUEST[9:]),
    )
    await peer.kind("pong", id=MARK)
    while not peer.pongs:
        await peer.read()
    assert peer.pongs == [b"between"]


@pytest.mark.parametrize(
    "broken",
    [
        frame(PING, b"p" * 126),
        frame(PONG, b"p" * 126),
        frame(CLOSE, b"\x03\xe8" + b"p" * 124),
        frame(PING, b"x", fin=False),
        frame(CLOSE, b"\x03\xe8", fin=False),
        *[frame(opcode, b"x") for opcode in (3, 4, 5, 6, 7, 0xB, 0xC, 0xD, 0xE, 0xF)],
        *[frame(TEXT, b"{}", rsv=rsv) for rsv in range(1, 8)],
        frame(PING, b"x", rsv=4),
        frame(CONTINUATION, b"{}"),
        frame(CONTINUATION, b"{}", fin=False),
        frame(TEXT, b"{", fin=False) + frame(TEXT, b"}"),
        frame(TEXT, b"{", fin=False) + frame(BINARY, b"}"),
        frame(TEXT, b"", fin=False) + frame(TEXT, b"{}"),
        frame(TEXT, b"{}", masked=False),
        frame(PING, b"x", masked=False),
        frame(CLOSE, b"\x03\xe8", masked=False),
        frame(TEXT, b"", length=1 << 63, width=8),
    ],
    ids=lambda data: data[:2].hex(),
)
async def test_a_broken_frame_ends_the_connection_as_a_protocol_error(
    peer: Peer, broken: bytes
) -> None:
    peer.write(broken)
    assert await peer.end() == 1002


# fragments and text


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_a_message_in_fragments_is_one_message(peer: Peer, size: int) -> None:
    parts = [PING_REQUEST[at : at + size] for at in range(0, len(PING_REQUEST), size)]
    last = len(parts) - 1
    for at, part in enumerate(parts):  # cuts through characters of two, three and four bytes
        peer.write(frame(CONTINUATION if at else TEXT, part, fin=at == last))
    await peer.kind("pong", id=MARK)


async def test_empty_fragments_are_fragments(peer: Peer) -> None:
    peer.write(
        frame(TEXT, fin=False),
        frame(CONTINUATION, fin=False),
        frame(CONTINUATION, PING_REQUEST, fin=False),
    )
    peer.write(frame(CONTINUATION))
    await peer.kind("pong", id=MARK)


async def test_frames_that_come_byte_by_byte_are_frames(peer: Peer) -> None:
    for byte in frame(TEXT, PING_REQUEST):
        peer.write(bytes([byte]))
        await peer.writer.drain()
    await peer.kind("pong", id=MARK)


async def test_a_request_that_comes_with_the_handshake_is_answered(hub: AnalyticsHub) -> None:
    request = handshake(hub.port, token()) + frame(TEXT, PING_REQUEST)
    answered = await raw(hub.port, request, until=MARK.encode())
    assert (answered.status, answered.body.count(MARK.encode())) == (101, 1)


async def test_a_broken_frame_that_comes_with_the_handshake_is_refused(hub: AnalyticsHub) -> None:
    request = handshake(hub.port, token()) + frame(TEXT, PING_REQUEST, masked=False)
    answered = await raw(hub.port, request, until=b"never")
    assert b"\x03\xea" in answered.body  # 1002
    assert MARK.encode() not in answered.body


@pytest.mark.parametrize("width", [2, 8])
async def test_each_width_of_the_length_is_read(peer: Peer, width: int) -> None:
    size = 200 if width == 2 else 65_536
    peer.write(frame(TEXT, PING_REQUEST.ljust(size), width=width))
    await peer.kind("pong", id=MARK)


BAD_UTF8 = [
    b"\xff",
    b"\x80",
    b"\xc0\xaf",
    b"\xe0\x80\xaf",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xf8\x88\x80\x80\x80",
    b"\xce",
    b"\xe2\x86",
    b"\xf0\x9d\x84",
]


@pytest.mark.parametrize("bad", BAD_UTF8, ids=lambda bad: bad.hex())
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "fragments"])
async def test_text_that_is_no_utf8_ends_the_connection(
    peer: Peer, bad: bytes, whole: bool
) -> None:
    if whole:
        peer.write(frame(TEXT, b'"' + bad))
    else:
        peer.write(frame(TEXT, b'"', fin=False))
        peer.write(*(frame(CONTINUATION, bytes([byte]), fin=False) for byte in bad))
        peer.write(frame(CONTINUATION))
    assert await peer.end() == 1007


# the end


@pytest.mark.parametrize(
    "code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 3999, 4000, 4999]
)  # fmt: skip
async def test_a_close_is_answered_with_its_code_and_the_hub_hangs_up(
    peer: Peer, code: int
) -> None:
    peer.write(frame(CLOSE, code.to_bytes(2) + "für heute".encode()))
    assert await peer.end() == code


async def test_a_close_without_a_code_is_answered(peer: Peer) -> None:
    peer.write(frame(CLOSE))
    assert await peer.end() in (1000, 1005)


@pytest.mark.parametrize(
    "code", [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535]
)
async def test_a_code_that_may_not_be_sent_is_a_protocol_error(peer: Peer, code: int) -> None:
    peer.write(frame(CLOSE, code.to_bytes(2)))
    assert await peer.end() == 1002


async def test_half_a_code_is_a_protocol_error(peer: Peer) -> None:
    peer.write(frame(CLOSE, b"\x03"))
    assert await peer.end() == 1002


@pytest.mark.parametrize("bad", BAD_UTF8, ids=lambda bad: bad.hex())
async def test_a_reason_that_is_no_utf8_is_said(peer: Peer, bad: bytes) -> None:
    peer.write(frame(CLOSE, b"\x03\xe8" + bad))
    assert await peer.end() in (1002, 1007)


async def test_nothing_comes_after_the_close_frame(hub: AnalyticsHub, peer: Peer) -> None:
    await peer.subscribed("system")
    peer.write(frame(CLOSE, b"\x03\xe8") + frame(TEXT, PING_REQUEST) + frame(PING, b"late"))
    while not peer.ended:
        hub.publish("system", "noise", {"text": "x" * 200}, key=os.urandom(4).hex())
        await peer.read()  # wsproto raises on anything behind a close frame
    assert peer.code == 1000
    assert peer.pongs == []


async def test_nothing_comes_after_the_close_frame_for_a_broken_peer(
    hub: AnalyticsHub, peer: Peer
) -> None:
    await peer.subscribed("system")
    peer.write(frame(TEXT, b"{}", masked=False))
    while not peer.ended:
        hub.publish("system", "noise", {"text": "x" * 200}, key=os.urandom(4).hex())
        await peer.read()
    assert peer.code == 1002


# sizes


async def test_a_message_over_the_limit_is_answered_and_the_connection_stays(peer: Peer) -> None:
    peer.write(frame(TEXT, b'{"action":"ping"}'.ljust(64 * 1024 + 1)))
    await peer.kind("error", code="too_large")
    peer.write(frame(TEXT, b'{"action":"ping","id":7}'.ljust(64 * 1024)))
    await peer.kind("pong", id=7)


async def test_a_frame_far_over_the_limit_is_refused_before_it_is_there(peer: Peer) -> None:
    peer.write(frame(TEXT, b"", length=1 << 40, width=8))
    assert await peer.end() == 1009


async def test_fragments_far_over_the_limit_together_are_refused(peer: Peer) -> None:
    peer.write(frame(TEXT, b" " * 30_000, fin=False))
    for _ in range(10):
        peer.write(frame(CONTINUATION, b" " * 30_000, fin=False))
    assert await peer.end() == 1009


# what the hub sends


@pytest.mark.parametrize("size", [10, 125, 126, 127, 65_000, 65_535, 65_536, 200_000])
@pytest.mark.parametrize("deflate", [False, True], ids=["plain", "deflate"])
async def test_every_length_comes_whole_and_in_its_shortest_form(
    hub: AnalyticsHub, size: int, deflate: bool
) -> None:
    offer = PerMessageDeflate() if deflate else None
    async with await Peer.open(hub.port, token(), deflate=offer) as peer:
        await peer.subscribed("system")
        text = os.urandom(size).hex()[:size]
        hub.publish("system", "sized", {"text": text})
        assert (await peer.kind("sized"))["data"]["text"] == text


# permessage-deflate

FULL = f"{ANSWER}; server_max_window_bits=15"
OFFERS = [
    ("permessage-deflate", ANSWER),
    ("Permessage-Deflate", None),
    ("permessage-deflate; client_max_window_bits", ANSWER),
    ("permessage-deflate; client_max_window_bits=10", ANSWER),
    ('permessage-deflate; client_max_window_bits="10"', None),
    ("permessage-deflate; server_no_context_takeover", ANSWER),
    ("permessage-deflate; client_no_context_takeover", ANSWER),
    ("permessage-deflate; server_max_window_bits=15", FULL),
    ("permessage-deflate; server_max_window_bits=15; client_max_window_bits=15", FULL),
    ("permessage-deflate; server_max_window_bits=10", None),
    ("permessage-deflate; server_max_window_bits=14; client_max_window_bits", None),
    ("permessage-deflate; server_max_window_bits", None),
    ("permessage-deflate; server_max_window_bits=7", None),
    ("permessage-deflate; server_max_window_bits=16", None),
    ("permessage-deflate; server_max_window_bits=015", None),
    ("permessage-deflate; client_max_window_bits=7", None),
    ("permessage-deflate; client_max_window_bits=x", None),
    ("permessage-deflate; server_no_context_takeover=1", None),
    ("permessage-deflate; client_max_window_bits; client_max_window_bits=12", None),
    ("permessage-deflate; server_no_context_takeover; server_no_context_takeover", None),
    ("permessage-deflate; unheard_of", None),
    ("permessage-deflate; unheard_of, permessage-deflate", ANSWER),
    ("permessage-deflate; server_max_window_bits=9, permessage-deflate; client_max_window_bits", ANSWER),
    ("x-webkit-deflate-frame, permessage-deflate; client_max_window_bits", ANSWER),
    ("x-webkit-deflate-frame", None),
    ("permessage-bzip2; client_max_compress_level", None),
]  # fmt: skip


@pytest.mark.parametrize(("offer", "answer"), OFFERS)
async def test_an_offer_is_answered_as_the_rfc_allows(
    hub: AnalyticsHub, offer: str, answer: str | None
) -> None:
    request = handshake(hub.port, token(), sec_websocket_extensions=offer)
    answered = await raw(hub.port, request)
    assert answered.status == 101
    assert answered.fields.get("sec-websocket-extensions") == answer


async def test_offers_in_two_fields_are_one_list(hub: AnalyticsHub) -> None:
    request = handshake(
        hub.port, token(), sec_websocket_extensions="permessage-deflate; unheard_of"
    )
    line = b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n"
    answered = await raw(hub.port, request.replace(b"\r\nupgrade", line + b"upgrade"))
    assert answered.fields.get("sec-websocket-extensions") == ANSWER


async def test_both_kinds_of_client_read_the_same_in_their_own_form(hub: AnalyticsHub) -> None:
    async with (
        await Peer.open(hub.port, token()) as plain,
        await Peer.open(hub.port, token(), deflate=PerMessageDeflate()) as packed,
        await Peer.open(
            hub.port, token(), deflate=PerMessageDeflate(server_max_window_bits=10)
        ) as narrow,
    ):
        assert (plain.deflate, packed.deflate, narrow.deflate) == (False, True, False)
        sizes = {}
        for each in (plain, packed, narrow):
            await each.subscribed("routing-metrics")
        for number in range(20):
            hub.publish(
                "routing-metrics", "routing-decision", {"number": number, "text": "ab" * 2000}
            )
        for name, each in (("plain", plain), ("packed", packed), ("narrow", narrow)):
            before = each.taken
            for number in range(20):
                await each.kind("routing-decision", number=number)
            sizes[name] = each.taken - before
        assert sizes["plain"] == sizes["narrow"] > 80_000
        assert sizes["packed"] < sizes["plain"] / 10


@pytest.fixture
async def packed(hub: AnalyticsHub) -> AsyncIterator[Peer]:
    async with await Peer.open(hub.port, token(), deflate=PerMessageDeflate()) as peer:
        assert peer.deflate
        await peer.kind("welcome")
        yield peer


async def test_a_compressed_request_is_read(packed: Peer) -> None:
    for _ in range(3):  # each on its own, as was agreed
        packed.write(frame(TEXT, deflated(PING_REQUEST), rsv=4))
        await packed.kind("pong", id=MARK)
    packed.write(frame(TEXT, PING_REQUEST))  # and one that is not compressed
    await packed.kind("pong", id=MARK)


async def test_a_compressed_request_may_come_in_fragments_with_a_ping_between(packed: Peer) -> None:
    body = deflated(PING_REQUEST)
    packed.write(
        frame(TEXT, body[:3], fin=False, rsv=4),
        frame(PING, b"between"),
        frame(CONTINUATION, body[3:10], fin=False),
        frame(CONTINUATION, body[10:]),
    )
    await packed.kind("pong", id=MARK)


async def test_a_final_block_and_several_blocks_are_read(packed: Peer) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    final = (
        packer.compress(PING_REQUEST) + packer.flush(zlib.Z_FINISH) + b"\x00"
    )  # RFC 7692 §7.2.3.4
    packed.write(frame(TEXT, final, rsv=4))
    await packed.kind("pong", id=MARK)
    half = zlib.compressobj(9, zlib.DEFLATED, -15)
    blocks = half.compress(PING_REQUEST[:9]) + half.flush(zlib.Z_SYNC_FLUSH)
    blocks += half.compress(PING_REQUEST[9:]) + half.flush(zlib.Z_SYNC_FLUSH)
    packed.write(frame(TEXT, blocks[:-4], rsv=4))
    await packed.kind("pong", id=MARK)


@pytest.mark.parametrize(
    "broken",
    [
        frame(PING, b"x", rsv=4),
        frame(TEXT, b"x", fin=False) + frame(CONTINUATION, b"x", rsv=4),
        frame(TEXT, deflated(b"{}"), rsv=6),
        frame(TEXT, deflated(b"{}"), rsv=5),
    ],
    ids=["ping", "continuation", "rsv2", "rsv3"],
)
async def test_a_reserved_bit_is_for_the_first_frame_of_a_message_alone(
    packed: Peer, broken: bytes
) -> None:
    packed.write(broken)
    assert await packed.end() == 1002


async def test_what_cannot_be_inflated_ends_the_connection(packed: Peer) -> None:
    packed.write(frame(TEXT, b"\xff\xff\xff\xff\xff", rsv=4))
    assert await packed.end() in (1002, 1007)


async def test_inflated_text_that_is_no_utf8_ends_the_connection(packed: Peer) -> None:
    packed.write(frame(TEXT, deflated(b'"\xff"'), rsv=4))
    assert await packed.end() == 1007


@pytest.mark.parametrize("fragments", [1, 7])
async def test_a_deflate_bomb_is_refused(packed: Peer, fragments: int) -> None:
    bomb = deflated(b" " * (64 << 20))
    assert len(bomb) < 65_536
    size = len(bomb) // fragments + 1
    for at in range(0, len(bomb), size):
        last = at + size >= len(bomb)
        opcode, rsv = (CONTINUATION, 0) if at else (TEXT, 4)
        packed.write(frame(opcode, bomb[at : at + size], fin=last, rsv=rsv))
    assert await packed.end() == 1009


async def test_a_browser_that_is_refused_gets_a_close_frame_also_with_deflate(
    hub: AnalyticsHub,
) -> None:
    offered = ["keepline.v1", "bearer.a.b.c"]
    offer = PerMessageDeflate()
    async with await Peer.open(hub.port, subprotocols=offered, deflate=offer) as peer:
        assert peer.status == 101
        assert await peer.end() == 3500
        assert peer.messages == []
