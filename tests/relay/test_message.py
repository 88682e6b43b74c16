"""What a relay message says, and what a receiver makes of it."""

import base64
import json
from datetime import UTC, datetime, timedelta

import pytest

from keepline.credentials.token import Token
from keepline.relay.message import (
    Code,
    Ledger,
    Push,
    Rejected,
    encode_push,
    jwt_expiry,
    parse_push,
    proof,
    read_envelope,
    seal,
)

WALL = 1_767_600_000.0
NOW = datetime.fromtimestamp(WALL, UTC)


def parse(text, **kwargs):
    data = text if isinstance(text, bytes) else text.encode()
    return parse_push(data, is_json=data.startswith(b"{"), wall=WALL, **kwargs)


def jwt(claims):
    def part(value):
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'none'})}.{part(claims)}.sig"


def push(generation, *, access="a", life=60.0, credential="schwab"):
    token = Token(
        access,
        expires_at=NOW + timedelta(seconds=life),
        issued_at=NOW,
        generation=generation,
    )
    return Push(token, credential, keeps_open=True)


def test_bare_text_is_a_token_of_thirty_minutes():
    token = parse("test_token_abc123").token
    assert token.access_token == "test_token_abc123"
    assert token.expires_at == NOW + timedelta(seconds=1800)
    assert (token.generation, token.refresh_token, dict(token.extra)) == (0, "", {})


def test_an_object_carries_token_refresh_token_and_expiry():
    got = parse('{"access_token":"a","refresh_token":"r","expires_at":1767603600,"other":[1]}')
    assert (got.token.access_token, got.token.refresh_token) == ("a", "r")
    assert got.token.expires_at.timestamp() == 1767603600
    assert not got.keeps_open


def test_a_message_of_version_one_keeps_the_connection_and_names_its_credential():
    token = Token("a", "r", expires_at=NOW + timedelta(hours=1), issued_at=NOW, generation=7)
    got = parse(encode_push(token, "schwab"))
    assert got.keeps_open
    assert got.credential == "schwab"
    assert got.token.generation == 7
    assert got.token.refresh_token == ""
    assert got.token.extra == {"credential": "schwab"}
    assert got.token.expires_at == token.expires_at


def test_the_refresh_token_goes_along_only_when_asked():
    token = Token("a", "secret-r", expires_at=NOW, issued_at=NOW)
    assert b"secret-r" not in encode_push(token, "x")
    assert json.loads(encode_push(token, "x"))["refresh_token"] == ""
    assert parse(encode_push(token, "x", with_refresh_token=True)).token.refresh_token == "secret-r"


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        (b"\xff\xfe", Code.BAD_UTF8, "byte 0"),
        (b'{"access_token":"\xff"}', Code.BAD_UTF8, "UTF-8"),
        (b'{"access_token":"a","x":"\xff"}', Code.BAD_UTF8, "UTF-8"),
        ("", Code.EMPTY, "empty"),
        ("two words", Code.BAD_TEXT, "space"),
        ("tab\there", Code.BAD_TEXT, "control"),
        ("a\x7fb", Code.BAD_TEXT, "control"),
        ("a\u2028b", Code.BAD_TEXT, "control"),
        ('"quoted"', Code.BAD_TEXT, "JSON"),
        ("[1]", Code.BAD_TEXT, "JSON"),
        ("{]", Code.BAD_JSON, "malformed"),
        ('{"access_token":"a"} x', Code.BAD_JSON, "trailing"),
        ('{"x":' + "[" * 200_000 + "]" * 200_000 + "}", Code.BAD_JSON, "recursion"),
        ('{"refresh_token":"r"}', Code.BAD_FIELD, "access_token"),
        ('{"access_token":""}', Code.BAD_FIELD, "empty"),
        ('{"access_token":1}', Code.BAD_FIELD, "str"),
        ('{"access_token":null}', Code.BAD_FIELD, "str"),
        ('{"access_token":"a","refresh_token":7}', Code.BAD_FIELD, "refresh_token"),
        ('{"access_token":"a","expires_at":"soon"}', Code.BAD_FIELD, "expires_at"),
        ('{"access_token":"a","expires_at":true}', Code.BAD_FIELD, "expires_at"),
        ('{"access_token":"a","expires_at":1767603600000}', Code.BAD_FIELD, "milliseconds"),
        ('{"access_token":"a","expires_at":-1}', Code.BAD_FIELD, "epoch"),
        ('{"access_token":"a","expires_at":1e999}', Code.BAD_FIELD, "range"),
        ('{"access_token":"a","v":2}', Code.BAD_FIELD, "version 1"),
        ('{"access_token":"a","generation":-1}', Code.BAD_FIELD, "generation"),
        ('{"access_token":"a","generation":1.5}', Code.BAD_FIELD, "generation"),
        ('{"access_token":"a b"}', Code.BAD_TEXT, "access_token"),
        ('{"access_token":"a\\r\\nX: y"}', Code.BAD_TEXT, "access_token"),
        ('{"access_token":"a","refresh_token":"b c"}', Code.BAD_TEXT, "refresh_token"),
        ('{"access_token":"a","credential":"b\\u0000"}', Code.BAD_TEXT, "credential"),
    ],
)  # fmt: skip
def test_what_is_no_message_gets_a_code_and_words(message, code, words):
    with pytest.raises(Rejected) as caught:
        parse(message)
    assert caught.value.code is code
    assert words in caught.value.reason


@pytest.mark.parametrize("null", ['"refresh_token":null', '"expires_at":null', '"v":null'])
def test_null_is_as_good_as_absent(null):
    assert parse('{"access_token":"a",' + null + "}").token.access_token == "a"


def test_the_expiry_of_a_jwt_counts_when_the_message_names_none():
    exp = int(WALL) + 86_400
    assert parse(jwt({"exp": exp})).token.expires_at.timestamp() == exp
    named = json.dumps({"access_token": jwt({"exp": exp}), "expires_at": exp - 60})
    assert parse(named).token.expires_at.timestamp() == exp - 60


@pytest.mark.parametrize(
    "token",
    [
        "a.b.c",
        "eyJh.eyJi",
        "eyJh.!!!.x",
        "eyJh.e30.x",
        "eyJh.W10.x",
        jwt({"exp": "soon"}),
        jwt({"exp": 0}),
        jwt({"exp": 10**15}),
        jwt([]),
        "eyJé.ü.x",
    ],
)
def test_what_is_no_jwt_has_no_expiry(token):
    assert jwt_expiry(token) is None
    assert parse(token).token.expires_at == NOW + timedelta(seconds=1800)


@pytest.mark.parametrize("moment", [0, 253402300799])
def test_the_whole_range_of_instants_is_taken(moment):
    message = json.dumps({"access_token": "a", "expires_at": moment})
    assert parse(message).token.expires_at.timestamp() == moment
    assert jwt_expiry(jwt({"exp": moment})) == (moment or None)


def test_two_dots_alone_make_no_jwt():
    claims = jwt({"exp": int(WALL) + 5})
    assert jwt_expiry(claims + ".more") is None
    assert jwt_expiry("xy" + claims) is None


def test_an_expired_token_is_refused():
    with pytest.raises(Rejected, match="expired at") as caught:
        Ledger().admit(push(1, life=0), WALL)
    assert caught.value.code is Code.EXPIRED


def test_an_older_generation_is_refused_while_the_newer_one_lives():
    ledger = Ledger()
    assert ledger.admit(push(5), WALL)
    with pytest.raises(Rejected, match="older than 5") as caught:
        ledger.admit(push(4), WALL)
    assert caught.value.code is Code.STALE
    assert ledger.admit(push(6, access="b"), WALL)


def test_the_same_token_again_is_no_news_and_no_fault():
    ledger = Ledger()
    assert ledger.admit(push(5), WALL)
    assert not ledger.admit(push(5), WALL)
    assert ledger.admit(push(5, access="other"), WALL)


def test_an_older_generation_is_better_than_a_dead_newer_one():
    ledger = Ledger()
    ledger.admit(push(5, life=10), WALL)
    assert ledger.admit(push(4, life=60), WALL + 11)


def test_generations_are_counted_by_credential():
    ledger = Ledger()
    assert ledger.admit(push(5, credential="schwab"), WALL)
    assert ledger.admit(push(4, credential="projectx"), WALL)


def test_messages_without_a_generation_are_always_news():
    ledger = Ledger()
    ledger.admit(push(5), WALL)
    assert ledger.admit(push(0), WALL)
    assert ledger.admit(push(0), WALL)


def test_endless_names_of_credentials_do_not_fill_the_memory():
    ledger = Ledger()
    for number in range(1000):
        ledger.admit(push(5, credential=f"c{number}"), WALL)
    assert ledger.admit(push(4, credential="c0"), WALL)
    with pytest.raises(Rejected):
        ledger.admit(push(4, credential="c999"), WALL)


def test_a_proof_opens_the_envelope_once_and_in_its_place_only():
    body = encode_push(Token("a", expires_at=NOW, issued_at=NOW), "x")
    sealed = seal(b"secret", "ab12cd34", 0, body)
    assert read_envelope(sealed, b"secret", "ab12cd34", 0) == body
    for secret, nonce, sequence in (
        (b"other", "ab12cd34", 0),
        (b"secret", "ffffffff", 0),
        (b"secret", "ab12cd34", 1),
    ):
        with pytest.raises(Rejected, match="does not fit") as caught:
            read_envelope(sealed, secret, nonce, sequence)
        assert caught.value.code is Code.BAD_MAC


@pytest.mark.parametrize(
    "message",
    [b"token", b'{"access_token":"a"}', b'{"v":1,"mac":1,"body":"x"}', b"\xff", b"[" * 9000],
)
def test_a_message_without_a_proof_is_refused(message):
    with pytest.raises(Rejected, match="wants a proof"):
        read_envelope(message, b"secret", "ab12cd34", 0)


def test_a_proof_of_other_characters_than_hex_is_only_wrong():
    with pytest.raises(Rejected, match="does not fit"):
        read_envelope('{"v":1,"mac":"é","body":"x"}'.encode(), b"s", "ab12cd34", 0)


def test_the_proof_is_hmac_sha256_over_nonce_sequence_and_body():
    import hashlib
    import hmac

    expected = hmac.new(b"k", b"aa\n3\n{}", hashlib.sha256).hexdigest()
    assert proof(b"k", "aa", 3, b"{}") == expected


def test_only_busy_is_worth_another_try():
    assert [code for code in Code if not code.is_final] == [Code.BUSY]


@pytest.mark.parametrize(
    "message",
    [
        b"my-secret-token with a space",
        b'["my-secret-token"]',
        b'{"access_token":"my-secret-token"',
        b'{"access_token":"my-secret-token",}',
        b'{"access_token":["my-secret-token"]}',
        b'{"access_token":"t","expires_at":"my-secret-token"}',
        b'{"access_token":"t","refresh_token":"my-secret-token\\n"}',
        b'{"access_token":"t","credential":"my-secret-token\\n"}',
        b'{"access_token":"my-secret-token","expires_at":-1}',
        b'{"access_token":"my-secret-token","v":2}',
        b"\xffmy-secret-token",
    ],
)
def test_no_reason_of_a_refusal_holds_a_part_of_the_message(message):
    with pytest.raises(Rejected) as caught:
        parse_push(message, is_json=message.startswith(b"{"), wall=1e9)
    assert "my-" not in caught.value.reason


def test_proofs_are_compared_in_constant_time(monkeypatch):
    compared = []

    def compare(one, other):
        compared.append((one, other))
        return False

    monkeypatch.setattr("keepline.relay.message.hmac.compare_digest", compare)
    with pytest.raises(Rejected, match="does not fit"):
        read_envelope(seal(b"s", "n", 0, b"tok"), b"s", "n", 0)
    assert compared == [(proof(b"s", "n", 0, b"tok").encode(),) * 2]
