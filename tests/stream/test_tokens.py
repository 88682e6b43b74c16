"""Where a stream asks for its token: any holder, a newer one after a refusal, nothing shown."""

from typing import Any

import pytest

from keepline.errors import TokenUnavailable
from keepline.stream.tokens import StreamTokens


class Token:
    token_type = "Bearer"

    def __init__(self, text: str, generation: int) -> None:
        self.access_token, self.generation = text, generation


class Holder:
    def __init__(self) -> None:
        self.newer_than: list[int | None] = []

    async def get(self, *, newer_than: int | None = None) -> Token:
        self.newer_than.append(newer_than)
        return Token("secret", 7)


class Text:
    async def get_token(self) -> str:
        return "secret"


async def later() -> str:
    return "secret"


@pytest.mark.parametrize("source", ["secret", Holder(), Text(), later, lambda: "secret"])
async def test_every_kind_of_source_gives_its_token_and_shows_none(source: Any) -> None:
    tokens = StreamTokens(source)
    assert not tokens.is_last("secret")
    assert await tokens() == "secret"
    assert tokens.is_last("secret")
    assert "secret" not in repr(tokens)
    tokens.refused()
    assert await tokens() == "secret"


async def test_after_a_refusal_a_newer_token_is_asked_for_once() -> None:
    holder = Holder()
    tokens = StreamTokens(holder)
    await tokens()
    tokens.refused()
    await tokens()
    await tokens()
    assert holder.newer_than == [None, 7, None]


async def test_a_source_that_has_no_newer_token_yet_is_asked_for_it_again() -> None:
    class Slow(Holder):
        async def get(self, *, newer_than: int | None = None) -> Token:
            token = await super().get(newer_than=newer_than)
            if len(self.newer_than) == 2:
                raise TokenUnavailable("the issuer is out of reach")
            return token

    holder = Slow()
    tokens = StreamTokens(holder)
    await tokens()
    tokens.refused()
    with pytest.raises(TokenUnavailable):
        await tokens()
    await tokens()
    await tokens()
    assert holder.newer_than == [None, 7, 7, None]


async def test_an_empty_token_is_said_to_be_none() -> None:
    with pytest.raises(TokenUnavailable, match="empty"):
        await StreamTokens(lambda: "")()


async def test_a_frame_that_repeats_the_token_hides_it_at_its_length() -> None:
    tokens = StreamTokens("a secret")
    assert tokens.hidden_in("before the first") == "before the first"
    await tokens()
    assert tokens.hidden_in("you said a secret.") == "you said ********."
    assert tokens.hidden_in(b"\xffa secret") == b"\xff********"
    assert tokens.hidden_in(b"nothing of it") == b"nothing of it"
