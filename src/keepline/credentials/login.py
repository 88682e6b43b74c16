"""A person's sign-in: opens the page once, hears the answer on a local callback or by paste, buys the tokens.

Invariants: one sign-in per credential on this machine; at most one browser; it ends by its timeout; the callback
answers one path on loopback, logs nothing and shows what came of it only when that is known; nothing but the state of
this very sign-in makes it listen to an address.
"""

import asyncio
import html
import logging
import re
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from keepline.clock import SYSTEM_CLOCK, Clock, within
from keepline.credentials.certificate import self_signed_context
from keepline.credentials.lease import FileLease
from keepline.credentials.oauth import SignIn
from keepline.credentials.oauth_issuer import OAuth2Issuer
from keepline.credentials.redirect import (
    Place,
    callback_place,
    read_redirect,
    require_refresh_token,
)
from keepline.credentials.token import Token
from keepline.errors import ConfigError, CredentialError, KeeplineError, SignInRequired
from keepline.files import runtime_directory
from keepline.telemetry import event

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["CALLBACK_TIMEOUT", "sign_in"]

CALLBACK_TIMEOUT = 300.0
"""Seconds that a person has for the issuer's pages; schwab-py gives as many."""

LOCK_WAIT = 0.5
"""Seconds: a sign-in that is just ending lets the next one begin."""

log = logging.getLogger("keepline.credentials")

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",  # the address of this page holds the code
    "X-Content-Type-Options": "nosniff",
}
_PAGE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
    '<body style="font:1.1em/1.5 system-ui,sans-serif;max-width:40em;margin:4em auto;padding:0 1em">'
    "<h1>{title}</h1><p>{words}</p></body></html>"
)


async def sign_in(
    issuer: OAuth2Issuer,
    *,
    paste: Callable[[str], Awaitable[str]] | None = None,
    open_browser: bool = True,
    announce: Callable[[str], object] | None = None,
    save: Callable[[Token], Awaitable[object]] | None = None,
    callback_timeout: float = CALLBACK_TIMEOUT,
    browser: Callable[[str], object] | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> Token:
    """Let a person sign in and return the first token.

    Args:
        issuer: one that sends people to a page.
        paste: asks the person for the address that the browser ended at, given the page's address; with it no callback
            is opened. None waits for the browser on the loopback address of redirect_uri.
        open_browser: open the page here.
        announce: told the page's address, for people who open it themselves; the address is not secret for long, yet
            belongs on a terminal and not in a log.
        save: keeps the token; the person's page says that it worked only after this.
        callback_timeout: seconds until it gives up.
        browser: opens an address; `webbrowser.open` unless given.
        clock: for the timeout.

    Raises:
        SignInRequired: nobody signed in, in time or in this sign-in.
        TokenRefused: the person or the issuer said no, or the answer cannot be renewed.
        TransientError: the issuer is out of order; sign in again later.
        ConfigError: the redirect_uri cannot be listened at.
        CredentialError: another sign-in of this credential is under way.
    """
    async with _only_one(issuer, clock):
        begun = issuer.begin_sign_in()
        if paste is not None:
            _show(begun.url, open_browser, announce, browser)
            text = await _in_time(paste(begun.url), callback_timeout, clock, issuer)
            return await _finish(
                issuer, begun, read_redirect(text, app=issuer.app, sign_in=begun), save
            )
        async with _callback(issuer, begun, clock) as callback:
            _show(begun.url, open_browser, announce, browser)
            code = await _in_time(callback.code, callback_timeout, clock, issuer)
            return await _finish(issuer, begun, code, save)


async def _finish(
    issuer: OAuth2Issuer,
    begun: SignIn,
    code: str,
    save: Callable[[Token], Awaitable[object]] | None,
) -> Token:
    token = require_refresh_token(await issuer.exchange(code, begun), issuer.app)
    if save is not None:
        await save(token)
    event(log, logging.INFO, "Signed in", credential=issuer.app.name, fingerprint=token.fingerprint)
    return token


async def _in_time(
    answer: Awaitable[str], seconds: float, clock: Clock, issuer: OAuth2Issuer
) -> str:
    try:
        return await within(clock, seconds, answer)
    except TimeoutError:
        raise SignInRequired(
            f"nobody signed in within {seconds:g} s", credential=issuer.app.name
        ) from None


@asynccontextmanager
async def _only_one(issuer: OAuth2Issuer, clock: Clock) -> AsyncIterator[None]:
    name = re.sub(r"[^\w.-]", "_", issuer.app.name or "default")
    directory = await asyncio.to_thread(runtime_directory)
    lease = FileLease(directory / f"login-{name}.lock", clock=clock)
    try:
        await within(clock, LOCK_WAIT, lease.__aenter__())
    except TimeoutError:
        raise CredentialError(
            f"another sign-in of {name} is under way: finish it or stop it first",
            credential=issuer.app.name,
        ) from None
    try:
        yield
    finally:
        await lease.__aexit__(None, None, None)


def _show(
    url: str,
    open_browser: bool,
    announce: Callable[[str], object] | None,
    browser: Callable[[str], object] | None,
) -> None:
    if announce is not None:
        announce(url)
    if open_browser:
        # a text browser would hold the loop, and the program at its end
        threading.Thread(target=_open, args=(browser, url), name="browser", daemon=True).start()


def _open(browser: Callable[[str], object] | None, url: str) -> None:
    import webbrowser

    try:
        (browser or webbrowser.open)(url)
    except Exception as error:  # whatever a browser's launcher dies of, the address was announced
        event(log, logging.WARNING, "Browser not opened", reason=type(error).__name__)


@asynccontextmanager
async def _callback(
    issuer: OAuth2Issuer, begun: SignIn, clock: Clock
) -> AsyncIterator["_Callback"]:
    place = callback_place(issuer.app.redirect_uri)
    tls = (
        await asyncio.to_thread(self_signed_context, place.host, clock.wall())
        if place.tls
        else None
    )
    callback = _Callback(issuer, begun, place)
    await callback.start(tls)
    try:
        yield callback
    except BaseException as error:
        callback.conclude(error)
        raise
    else:
        callback.conclude(None)
    finally:
        await callback.stop()


class _Callback:
    """The page that the browser comes back to."""

    def __init__(self, issuer: OAuth2Issuer, begun: SignIn, place: Place) -> None:
        self._issuer, self._begun, self._place = issuer, begun, place
        loop = asyncio.get_running_loop()
        self.code: asyncio.Future[str] = loop.create_future()
        self._concluded = asyncio.Event()
        self._failure: BaseException | None = None
        self._runner: web.ServerRunner | None = None

    async def start(self, tls: ssl.SSLContext | None) -> None:
        from aiohttp import web

        # the access log would hold the code
        runner = web.ServerRunner(web.Server(self._answer, access_log=None), shutdown_timeout=5.0)
        await runner.setup()
        place = self._place
        try:
            await web.TCPSite(runner, place.host, place.port, ssl_context=tls).start()
        except OSError as error:
            await runner.cleanup()
            raise ConfigError(
                f"cannot listen on {place.host}:{place.port} ({error.strerror}): stop what uses the port, "
                "or paste the address instead",
                key="redirect_uri",
            ) from error
        self._runner = runner

    async def stop(self) -> None:
        """Answer the pages that still wait, then stop listening."""
        self.code.cancel()
        if self._runner is not None:
            await self._runner.cleanup()

    def conclude(self, failure: BaseException | None) -> None:
        """Tell the waiting pages what came of it."""
        self._failure = failure
        self._concluded.set()

    async def _answer(self, request: "web.BaseRequest") -> "web.Response":
        path, _, _ = request.raw_path.partition("?")
        if request.method != "GET" or path != self._place.path:
            return _page(404, "Not here", "This program waits for a sign-in at another address.")
        scheme = "https" if self._place.tls else "http"
        try:
            code = read_redirect(
                f"{scheme}://{request.host}{request.raw_path}",
                app=self._issuer.app,
                sign_in=self._begun,
            )
        except SignInRequired as error:
            event(log, logging.WARNING, "Foreign redirect", credential=self._issuer.app.name)
            return _page(400, "Not this sign-in", _words(error))
        except KeeplineError as error:
            if not self.code.done():
                self.code.set_exception(error)
        else:
            if not self.code.done():
                self.code.set_result(code)
        await self._concluded.wait()
        if self._failure is None:
            return _page(200, "Signed in", "It worked: you may close this page.")
        return _page(400, "Not signed in", _words(self._failure))


def _words(error: BaseException) -> str:
    return str(error) if isinstance(error, KeeplineError) else "The sign-in was interrupted."


def _page(status: int, title: str, words: str) -> "web.Response":
    from aiohttp import web

    text = _PAGE.format(title=html.escape(title), words=html.escape(words))
    return web.Response(status=status, text=text, content_type="text/html", headers=_HEADERS)
