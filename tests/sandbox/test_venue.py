"""Claims about the sandbox's OAuth server, at any time of its clock."""

import base64
import hashlib
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from keepline.errors import ConfigError
from keepline.sandbox.venue import OAuthVenue, Reply, VenueSettings

CALLBACK = "https://127.0.0.1:8182"
QUERY = {
    "client_id": "sandbox-key",
    "redirect_uri": CALLBACK,
    "response_type": "code",
    "state": "s&1",
}
WEEK = 604_800.0


def basic(key: str = "sandbox-key", secret: str = "sandbox-secret") -> str:
    return "Basic " + base64.b64encode(f"{key}:{secret}".encode()).decode()


def venue(**settings: Any) -> OAuthVenue:
    return OAuthVenue(VenueSettings(**settings))


def body(reply: Reply) -> dict[str, Any]:
    assert isinstance(reply.body, dict)
    return reply.body


def refresh(shop: OAuthVenue, token: str, *, now: float = 0.0, **options: Any) -> Reply:
    form = {"grant_type": "refresh_token", "refresh_token": token}
    return shop.token(form, authorization=basic(), now=now, **options)


def redirect_fields(reply: Reply) -> dict[str, str]:
    return {k: v[0] for k, v in parse_qs(urlsplit(reply.headers["Location"]).query).items()}


def code_of(shop: OAuthVenue, *, now: float = 0.0, **extra: str) -> str:
    return redirect_fields(shop.authorize({**QUERY, **extra}, now=now))["code"]


def exchange(shop: OAuthVenue, code: str, *, now: float = 0.0, **extra: str) -> Reply:
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": CALLBACK, **extra}
    return shop.token(form, authorization=basic(), now=now)


def test_the_page_agrees_at_once_and_redirects_as_schwab_does() -> None:
    reply = venue().authorize(QUERY, now=0)
    assert reply.status == 302
    location = reply.headers["Location"]
    assert location.startswith(f"{CALLBACK}?code=C0.")
    assert "%40&session=" in location  # the code ends in @, encoded once
    fields = redirect_fields(reply)
    assert fields["code"].endswith("@")
    assert fields["state"] == "s&1"


def test_a_redirect_keeps_the_query_of_the_callback() -> None:
    reply = venue().authorize({**QUERY, "redirect_uri": f"{CALLBACK}/?a=b"}, now=0)
    assert reply.headers["Location"].startswith(f"{CALLBACK}/?a=b&code=")


@pytest.mark.parametrize(
    ("change", "status", "error"),
    [
        ({"client_id": "x"}, 401, "invalid_client"),
        ({"redirect_uri": "https://evil.example/"}, 400, "invalid_request"),
        ({"redirect_uri": "ftp://127.0.0.1/"}, 400, "invalid_request"),
        ({"redirect_uri": ""}, 400, "invalid_request"),
    ],
)
def test_the_page_never_redirects_to_strangers(
    change: dict[str, str], status: int, error: str
) -> None:
    reply = venue().authorize({**QUERY, **change}, now=0)
    assert reply.status == status
    assert body(reply)["error"] == error


def test_a_registered_callback_is_compared_letter_by_letter() -> None:
    shop = venue(redirect_uris=(CALLBACK,))
    assert shop.authorize(QUERY, now=0).status == 302
    assert shop.authorize({**QUERY, "redirect_uri": f"{CALLBACK}/"}, now=0).status == 400


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"code_challenge": "x", "code_challenge_method": "plain"}, "invalid_request"),
    ],
)
def test_other_mistakes_come_back_with_the_redirect(change: dict[str, str], error: str) -> None:
    fields = redirect_fields(venue().authorize({**QUERY, **change}, now=0))
    assert fields == {"error": error, "state": "s&1"}


def test_a_code_buys_tokens_once_and_within_half_a_minute() -> None:
    shop = venue()
    code = code_of(shop, now=100)
    answer = exchange(shop, code, now=129.9)
    assert answer.status == 200
    assert {"access_token", "refresh_token", "id_token"} < body(answer).keys()
    assert body(answer)["expires_in"] == 1800
    assert body(answer)["scope"] == "api"
    assert body(exchange(shop, code, now=129.9))["error"] == "invalid_grant"
    assert body(exchange(shop, code_of(shop, now=100), now=130))["error"] == "invalid_grant"


def test_a_code_is_bound_to_its_callback() -> None:
    shop = venue()
    answer = exchange(shop, code_of(shop), redirect_uri=f"{CALLBACK}/")
    assert body(answer)["error"] == "invalid_grant"


def test_a_challenge_wants_its_verifier() -> None:
    challenge = base64.urlsafe_b64encode(hashlib.sha256(b"v" * 43).digest()).decode().rstrip("=")
    proof = {"code_challenge": challenge, "code_challenge_method": "S256"}
    shop = venue()
    assert exchange(shop, code_of(shop, **proof), code_verifier="v" * 43).status == 200
    assert exchange(shop, code_of(shop, **proof), code_verifier="w" * 43).status == 400
    assert exchange(shop, code_of(shop, **proof)).status == 400


def test_a_refresh_rotates_and_a_spent_token_ends_the_family() -> None:
    shop = venue()
    first = body(shop.sign_in(now=0))
    second = body(refresh(shop, first["refresh_token"], now=10))
    assert second["refresh_token"] != first["refresh_token"]
    assert shop.accepts(second["access_token"], now=10)
    stolen = refresh(shop, first["refresh_token"], now=11)
    assert (stolen.status, body(stolen)["error"]) == (400, "invalid_grant")
    assert "spent before" in body(stolen)["error_description"]
    assert not shop.accepts(second["access_token"], now=11)
    assert "revoked" in body(refresh(shop, second["refresh_token"], now=12))["error_description"]
    assert (shop.counts["refreshes"], shop.counts["reuses"], shop.counts["revocations"]) == (
        1,
        1,
        1,
    )


def test_without_rotation_the_refresh_token_stays() -> None:
    shop = venue(rotate=False)
    first = body(shop.sign_in(now=0))
    for now in (1.0, 2.0):
        answer = body(refresh(shop, first["refresh_token"], now=now))
        assert answer["refresh_token"] == first["refresh_token"]
        assert answer["access_token"] != first["access_token"]
    assert shop.counts["reuses"] == 0


def test_a_request_may_rotate_against_the_setting() -> None:
    shop = venue(rotate=False)
    first = body(shop.sign_in(now=0))
    turned = body(refresh(shop, first["refresh_token"], rotate=True))
    assert turned["refresh_token"] != first["refresh_token"]
    kept = body(refresh(shop, turned["refresh_token"], rotate=False))
    assert kept["refresh_token"] == turned["refresh_token"]


def test_within_the_grace_the_lost_answer_is_given_again() -> None:
    shop = venue(grace=60)
    first = body(shop.sign_in(now=0))
    lost = body(refresh(shop, first["refresh_token"], now=10))
    again = body(refresh(shop, first["refresh_token"], now=69))
    assert again["refresh_token"] == lost["refresh_token"]
    assert refresh(shop, lost["refresh_token"], now=70).status == 200
    assert refresh(shop, first["refresh_token"], now=71).status == 400
    assert shop.counts["revocations"] == 1


def test_no_refresh_moves_the_seven_days() -> None:
    shop = venue()
    token = body(shop.sign_in(now=0))["refresh_token"]
    for day in range(1, 7):
        token = body(refresh(shop, token, now=day * 86_400))["refresh_token"]
    last = refresh(shop, token, now=WEEK)
    assert body(last)["error"] == "unsupported_token_type"
    assert "refresh_token_authentication_error" in body(last)["error_description"]


def test_a_new_sign_in_ends_the_earlier_one_unless_told_otherwise() -> None:
    for one, status in ((True, 400), (False, 200)):
        shop = venue(one_sign_in=one)
        early = body(shop.sign_in(now=0))["refresh_token"]
        shop.sign_in(now=1)
        assert refresh(shop, early, now=2).status == status


def test_an_access_token_lives_as_long_as_it_says() -> None:
    shop = venue(access_lifetime=2.5)
    answer = body(shop.sign_in(now=100))
    assert answer["expires_in"] == 2.5
    assert shop.accepts(answer["access_token"], now=102.4)
    assert not shop.accepts(answer["access_token"], now=102.5)


def test_a_client_of_its_own_gets_no_refresh_token() -> None:
    shop = venue()
    answer = body(shop.token({"grant_type": "client_credentials"}, authorization=basic(), now=0))
    assert "refresh_token" not in answer
    assert "id_token" not in answer
    assert shop.accepts(answer["access_token"], now=1)
    assert shop.counts["client_credentials"] == 1


@pytest.mark.parametrize(
    ("authorization", "form"),
    [
        ("", {}),
        (basic(secret="x"), {}),
        ("Basic !!!", {}),
        ("Basic " + base64.b64encode(b"\xff\xfe").decode(), {}),
        ("Bearer x", {}),
        ("", {"client_id": "sandbox-key", "client_secret": "x"}),
    ],
)
def test_a_client_that_cannot_prove_itself_is_refused(
    authorization: str, form: dict[str, str]
) -> None:
    shop = venue()
    form = {"grant_type": "client_credentials", **form}
    reply = shop.token(form, authorization=authorization, now=0)
    assert (reply.status, body(reply)["error"]) == (401, "invalid_client")
    assert shop.counts["refused"] == 1


def test_a_client_may_prove_itself_in_the_body_or_with_encoded_halves() -> None:
    shop = venue(app_secret="a:b %")
    form = {"grant_type": "client_credentials"}
    posted = {**form, "client_id": "sandbox-key", "client_secret": "a:b %"}
    assert shop.token(posted, now=0).status == 200
    encoded = basic("sandbox-key", "a%3Ab+%25")
    assert shop.token(form, authorization=encoded, now=0).status == 200


def test_an_unknown_grant_is_named_short() -> None:
    shop = venue()
    for form in ({}, {"grant_type": "x" * 500}):
        reply = shop.token(form, authorization=basic(), now=0)
        assert body(reply)["error"] == "unsupported_grant_type"
        assert len(body(reply)["error_description"]) < 80


def test_an_unknown_refresh_token_is_refused_without_revoking_anyone() -> None:
    shop = venue()
    token = body(shop.sign_in(now=0))["refresh_token"]
    assert body(refresh(shop, "guess"))["error"] == "invalid_grant"
    assert refresh(shop, token).status == 200


def test_the_venue_takes_back_access_or_everything() -> None:
    shop = venue()
    answer = body(shop.sign_in(now=0))
    shop.revoke("access")
    assert not shop.accepts(answer["access_token"], now=1)
    again = body(refresh(shop, answer["refresh_token"], now=1))
    shop.revoke("all")
    assert not shop.accepts(again["access_token"], now=1)
    assert refresh(shop, again["refresh_token"], now=1).status == 400
    assert shop.counts["revocations"] == 1


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    def life(seed: int) -> list[str]:
        shop = venue(seed=seed)
        first = body(shop.sign_in(now=0))
        return [first["access_token"], body(refresh(shop, first["refresh_token"]))["refresh_token"]]

    assert life(1) == life(1)
    assert not set(life(1)) & set(life(2))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("access_lifetime", 0),
        ("refresh_lifetime", -1),
        ("session_lifetime", float("inf")),
        ("code_lifetime", float("nan")),
        ("grace", -1),
        ("grace", float("nan")),
    ],
)
def test_times_that_are_none_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match="seconds") as caught:
        venue(**{name: value})
    assert caught.value.key == name


def test_the_settings_do_not_show_the_secrets() -> None:
    shown = repr(VenueSettings())
    assert "sandbox-secret" not in shown
    assert "sandbox-api-key" not in shown
