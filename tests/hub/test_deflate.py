"""The negotiation of permessage-deflate, after RFC 7692."""

import pytest

from keepline.hub.deflate import ANSWER, negotiate_deflate

FULL = f"{ANSWER}; server_max_window_bits=15"


@pytest.mark.parametrize(
    ("offer", "answer"),
    [
        (None, None),
        ("", None),
        ("x-webkit-deflate-frame", None),
        ("permessage-deflate", ANSWER),
        ("Permessage-Deflate", ANSWER),
        ("permessage-deflate; client_max_window_bits", ANSWER),
        ("permessage-deflate; client_max_window_bits=10", ANSWER),
        ('permessage-deflate; client_max_window_bits="10"', ANSWER),
        ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", ANSWER),
        ("permessage-deflate; server_max_window_bits=15", FULL),
        ('permessage-deflate; server_max_window_bits="15"', FULL),
        ("permessage-deflate; server_max_window_bits=14", None),
        ("permessage-deflate; server_max_window_bits=8", None),
        ("permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; server_max_window_bits=16", None),
        ("permessage-deflate; server_max_window_bits=015", None),
        ("permessage-deflate; client_max_window_bits=7", None),
        ("permessage-deflate; client_max_window_bits=", None),
        ("permessage-deflate; client_max_window_bits; client_max_window_bits", None),
        ("permessage-deflate; server_no_context_takeover=1", None),
        ("permessage-deflate; colour=blue", None),
        ("permessage-deflate;", None),
        # alternatives in the order of preference
        ("permessage-deflate; server_max_window_bits=10, permessage-deflate", ANSWER),
        ("mux, permessage-deflate; client_max_window_bits", ANSWER),
        ("permessage-deflate; server_max_window_bits=15, permessage-deflate", FULL),
    ],
)
def test_an_offer_is_answered_with_what_it_allows(offer: str | None, answer: str | None) -> None:
    assert negotiate_deflate(offer) == answer
