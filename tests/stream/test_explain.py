"""A hub's error texts with hints."""

import pytest

from keepline.stream.explain import explain

HINTS = [
    ("Failed to invoke 'Nope' due to an error on the server. HubException: Method does not exist.",
     "no method of this name"),
    ("Failed to invoke 'SubscribeContractQuotes' due to an error on the server.", "types of the arguments are wrong"),
    ("Failed to invoke 'Admin' because user is unauthorized", "may not call"),
    ("An unexpected error occurred invoking 'Bug' on the server.", "was called and failed"),
    ("The client attempted to invoke the streaming 'C' method with a non-streaming invocation.", "stream() instead"),
    ("The client attempted to invoke the non-streaming 'E' method with a streaming invocation.", "invoke() instead"),
    ("Connection closed with an error.", "32 KiB"),
    ("Handshake was canceled.", "in time"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "hint"), HINTS)
def test_a_known_text_gets_a_hint_behind_it(text: str, hint: str) -> None:
    explained = explain(text)
    assert explained.startswith(text)
    assert hint in explained


@pytest.mark.parametrize(
    "text",
    ["", "boom", "An unexpected error occurred invoking 'Boom' on the server. HubException: out of funds",
     "Failed to invoke 'X' due to an error on the server. HubException: not today"],
)  # fmt: skip
def test_the_methods_own_words_stay_as_they_are(text: str) -> None:
    assert explain(text) == text
