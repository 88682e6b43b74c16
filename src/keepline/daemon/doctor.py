"""Looks at everything that keeps tokens from flowing, and names the remedy of each thing it finds.

Invariant: it changes nothing, spends no token and shows no secret.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.config import (
    OAuth2Credential,
    ProjectXCredential,
    SchwabCredential,
    Settings,
    load,
)
from keepline.daemon.ask import daemon, stored_status
from keepline.daemon.compose import issuer_of, sender_of, store_of
from keepline.errors import KeeplineError
from keepline.files import runtime_directory, strangers_can_write
from keepline.http import HttpSession
from keepline.relay.address import daemon_socket_path

__all__ = ["LARGEST_SKEW", "Finding", "compare_clocks", "examine"]

LARGEST_SKEW = 30.0
"""Seconds that our clock may differ from the issuer's: more, and a token dies before we think so."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        level: `ok`, `warn` or `fail`.
        subject: what was looked at.
        words: what was found.
        remedy: what to do, "" when nothing.
    """

    level: Literal["ok", "warn", "fail"]
    subject: str
    words: str
    remedy: str = ""


async def examine(config: Path | None, *, clock: Clock = SYSTEM_CLOCK) -> AsyncIterator[Finding]:
    """Look at one thing after another."""
    try:
        settings = await asyncio.to_thread(load, config)
    except KeeplineError as error:
        yield Finding("fail", "configuration", str(error), "correct it: keepline config check")
        return
    yield await asyncio.to_thread(_configuration, settings)
    for name in settings.credentials:
        async for finding in _credential(settings, name, clock):
            yield finding
    for name in settings.relay:
        yield await asyncio.to_thread(_relay, settings, name)
    yield await asyncio.to_thread(_runtime)
    yield await _daemon()


def _configuration(settings: Settings) -> Finding:
    file = settings.file
    if file is None:
        return Finding("ok", "configuration", "from the environment")
    if strangers_can_write(file.parent) == "yes" or file.stat().st_mode & 0o002:
        words = f"{file} can be changed by strangers, who could have tokens sent to themselves"
        return Finding("warn", "configuration", words, f"chmod o-w {file} {file.parent}")
    return Finding("ok", "configuration", str(file))


async def _credential(settings: Settings, name: str, clock: Clock) -> AsyncIterator[Finding]:
    subject = f"credential {name}"
    try:
        issuer = await asyncio.to_thread(issuer_of, settings, name, clock=clock)
        await asyncio.to_thread(store_of, settings, name, clock=clock)
    except KeeplineError as error:
        yield Finding("fail", subject, str(error), "correct what the line names")
        return
    person = bool(getattr(issuer, "needs_person", False))
    yield await _stored(settings, name, person, clock)
    url = _url(settings, name)
    if url:
        async for finding in _issuer(subject, url, clock):
            yield finding


async def _stored(settings: Settings, name: str, person: bool, clock: Clock) -> Finding:
    subject = f"credential {name}"
    status = await stored_status(settings, name, clock=clock)
    login = f"keepline login {name}"
    match status["state"]:
        case "ERROR":
            return Finding(
                "fail", subject, str(status["last_error"]), "correct what the line names"
            )
        case "SIGN_IN_REQUIRED" if status["storage"] == "memory":
            return Finding("ok", subject, "kept in memory")
        case "SIGN_IN_REQUIRED" if not person:
            return Finding("ok", subject, "no token stored yet; the daemon gets the first one")
        case "SIGN_IN_REQUIRED":
            return Finding("fail", subject, "no token is stored", login)
        case "EXPIRED":
            words = f"the stored token expired at {status['expires_at']}"
            return Finding("warn", subject, words, "start keepline run")
    left = status["signin_in_seconds"]
    if left is not None and left < 86_400:
        return Finding(
            "warn", subject, f"a person must sign in by {status['signin_deadline']}", login
        )
    return Finding("ok", subject, f"token valid until {status['expires_at']}")


def _url(settings: Settings, name: str) -> str:
    table = settings.credentials[name]
    if isinstance(table, SchwabCredential | ProjectXCredential):
        return table.base_url
    if isinstance(table, OAuth2Credential):
        parts = urlsplit(table.token_url)
        return f"{parts.scheme}://{parts.netloc}"
    return ""


async def _issuer(subject: str, url: str, clock: Clock) -> AsyncIterator[Finding]:
    try:
        async with HttpSession(timeout_seconds=10.0) as http:
            response = await http.request("GET", url)
    except KeeplineError as error:
        yield Finding("fail", f"{subject}: issuer", str(error), "check network, proxy and firewall")
        return
    yield Finding("ok", f"{subject}: issuer", f"{url} answers")
    date = response.headers.get("Date")
    if date:
        yield compare_clocks(subject, date, clock.wall())


def compare_clocks(subject: str, date: str, now: datetime) -> Finding:
    """How far our clock is from the Date header of an issuer."""
    try:
        theirs = parsedate_to_datetime(date)
        seconds = abs((now - theirs).total_seconds())
    except (ValueError, TypeError):
        return Finding("warn", f"{subject}: clock", "the issuer's Date header is no date")
    words = f"{seconds:.0f} s away from the issuer's"
    if seconds > LARGEST_SKEW:
        remedy = "set the clock: timedatectl set-ntp true"
        return Finding("warn", f"{subject}: clock", words, remedy)
    return Finding("ok", f"{subject}: clock", words)


def _relay(settings: Settings, name: str) -> Finding:
    try:
        sender = sender_of(settings, name)
    except KeeplineError as error:
        return Finding("fail", f"relay {name}", str(error), "correct what the line names")
    absent = [
        target.name
        for target in sender.targets
        if target.endpoint.path is not None and not target.endpoint.path.exists()
    ]
    if absent:
        words = f"no bot listens at {', '.join(absent)}"
        return Finding("warn", f"relay {name}", words, "start the bot, or keepline listen")
    return Finding("ok", f"relay {name}", f"targets: {len(sender.targets)}")


def _runtime() -> Finding:
    try:
        directory = runtime_directory()
        daemon_socket_path()
    except (KeeplineError, OSError) as error:
        remedy = "set KEEPLINE_RUNTIME_DIR to a short path of your own"
        return Finding("fail", "runtime directory", str(error), remedy)
    return Finding("ok", "runtime directory", str(directory))


async def _daemon() -> Finding:
    try:
        async with daemon() as client:
            if client is None:
                return Finding("warn", "daemon", "does not run", "keepline run")
            status = await client.status()
    except KeeplineError as error:
        return Finding("fail", "daemon", str(error), "stop what listens there, then keepline run")
    wrong = [f"{part['name']}: {part['reason']}" for part in status["parts"] if not part["ready"]]
    if wrong:
        return Finding("warn", "daemon", "; ".join(wrong), "keepline status")
    return Finding("ok", "daemon", f"pid {status['pid']}, every part does its job")
