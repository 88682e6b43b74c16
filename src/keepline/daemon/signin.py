"""A person's sign-in from the command line: the right issuer, the token saved, a running daemon told."""

import asyncio
import sys
from collections.abc import Callable

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.config import Settings
from keepline.credentials.login import sign_in
from keepline.credentials.oauth_issuer import OAuth2Issuer
from keepline.credentials.token import Token
from keepline.daemon.ask import save_token
from keepline.daemon.compose import issuer_of
from keepline.daemon.loop import from_thread
from keepline.errors import ConfigError, SignInRequired
from keepline.http import HttpSession

__all__ = ["ask_line", "login"]


async def login(
    settings: Settings,
    name: str,
    *,
    paste: bool,
    open_browser: bool,
    announce: Callable[[str], object],
    clock: Clock = SYSTEM_CLOCK,
) -> Token:
    """Let a person sign in and save what comes of it.

    Args:
        settings: the configuration.
        name: the credential.
        paste: ask for the address that the browser ended at, instead of listening for it.
        open_browser: open the page here.
        announce: told the page's address.
        clock: for timeouts.

    Raises:
        ConfigError: this credential needs no person, or keeps its token in memory only.
        KeeplineError: as `keepline.credentials.login.sign_in`.
    """
    saved: list[Token] = []

    async def save(token: Token) -> None:
        saved.append(await save_token(settings, name, token, clock=clock))

    async with HttpSession() as http:
        issuer = await asyncio.to_thread(issuer_of, settings, name, http=http, clock=clock)
        if not isinstance(issuer, OAuth2Issuer) or not issuer.needs_person:
            raise ConfigError(
                f"nobody signs in for {name}: its token is bought with what the configuration says; "
                f"keepline token refresh {name}",
                key=f"credentials.{name}",
            )
        await sign_in(
            issuer,
            paste=(lambda _: ask_line("the address that the browser ended at: ", credential=name))
            if paste
            else None,
            open_browser=open_browser,
            announce=announce,
            save=save,
            clock=clock,
        )
    return saved[-1]


async def ask_line(prompt: str, *, credential: str = "") -> str:
    """A line from standard input; a person who never answers keeps no program from ending.

    Args:
        prompt: what is asked.
        credential: who signs in, for the error.

    Raises:
        SignInRequired: the input ended.
    """
    sys.stderr.write(prompt)
    sys.stderr.flush()
    line = await from_thread(lambda: sys.stdin.readline(), name="keepline-input")
    if not line:
        raise SignInRequired("the input ended before an address came", credential=credential)
    return line.strip()
