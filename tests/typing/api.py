"""A use of every public name as a user would write it: checked by mypy --strict, never run."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import assert_type

import keepline
from keepline import (
    APIError,
    AuthService,
    CircuitOpen,
    Closed,
    ConfigError,
    CredentialError,
    DeliveryReport,
    KeeplineError,
    OAuth2Issuer,
    OutcomeUnknown,
    PermanentError,
    ProjectXIssuer,
    ProtocolError,
    QueueFull,
    RateLimited,
    Refused,
    SchwabIssuer,
    SchwabTokenFile,
    SignInRequired,
    StaticIssuer,
    StorageError,
    Target,
    TLSConfig,
    Token,
    TokenFeed,
    TokenManager,
    TokenManagerConfig,
    TokenReceiver,
    TokenReceiverConfig,
    TokenRefused,
    TokenSender,
    TokenState,
    TokenStorage,
    TokenUnavailable,
    TransientError,
)

assert_type(keepline.__version__, str)


def note(*values: object) -> None:
    """What a user would do with a value."""


class MyIssuer:
    """An issuer of the user's own: no base class is needed."""

    async def authenticate(self) -> Token:
        return Token("access", "refresh", datetime.now(UTC) + timedelta(minutes=30), scope="api")

    async def refresh(self, token: Token) -> Token:
        assert_type(token.expires_at, datetime)
        assert_type(token.signin_deadline, datetime | None)
        assert_type(token.fingerprint, str)
        return token.with_generation(token.generation + 1)


def issuers() -> list[AuthService]:
    return [
        MyIssuer(),
        OAuth2Issuer(
            "https://id.example/token", "client", "secret", grant="client_credentials", scope="read"
        ),
        SchwabIssuer("key", "secret"),
        SchwabIssuer.from_app_config(Path("configs/schwab_app_config.yaml")),
        ProjectXIssuer("name", "key"),
        StaticIssuer("token"),
    ]


async def managing(issuer: AuthService) -> None:
    storage = TokenStorage("data/tokens.enc", key="passphrase", kdf="argon2id")
    storage.store_token("token", datetime.now(UTC))
    assert_type(storage.load_token(), tuple[str, datetime] | None)
    assert_type(storage.load(), Token | None)
    assert_type(storage.is_valid(), bool)
    storage.store(Token("access"))
    storage.clear_token()
    config = TokenManagerConfig(name="schwab", refresh_at_fraction=0.5, retry_delays=(1.0, 2.0))
    async with TokenManager(config, issuer, storage=storage) as manager:
        assert_type(await manager.get_token(), str)
        assert_type(await manager.get(newer_than=3), Token)
        assert_type(await manager.force_refresh(than=3), Token)
        assert_type(manager.get_state(), TokenState)
        manager.update_access_token("token", datetime.now(UTC))
        manager.update_tokens(Token("access"))
        unsubscribe: Callable[[], None] = manager.subscribe(lambda token: note(token))
        unsubscribe()
    other = TokenManager(
        {"name": "other"}, issuer, storage=SchwabTokenFile("configs/schwab_tokens.json")
    )
    await other.start()
    await other.stop()


def receiving() -> None:
    config = TokenReceiverConfig(
        prefer_unix_socket=False, tcp_port=9999, shared_secret="secret", history_size=4
    )
    receiver = TokenReceiver(lambda token: note(token.upper()), config)
    assert_type(receiver.start(), bool)
    assert_type(receiver.get_latest_token(), str)
    assert_type(receiver.get_latest(), Token | None)
    assert_type(receiver.is_running, bool)
    assert_type(receiver.token_count, int)
    remove: Callable[[], None] = receiver.add_callback(
        lambda token: note(token.expires_at), full=True
    )
    remove()
    receiver.set_callback(lambda token: note(token))
    note(receiver.last_error, receiver.history(), receiver.get_stats())
    receiver.stop()
    with TokenReceiver() as running:
        assert_type(running, TokenReceiver)


async def receiving_in_a_loop() -> None:
    async def use(token: str) -> None:
        await asyncio.sleep(0)

    async with TokenReceiver(use) as receiver:
        assert_type(receiver, TokenReceiver)


async def sending() -> None:
    targets = [
        Target("unix:/run/bot.sock", name="bot", send_refresh_token=True),
        Target(
            "tls://bot.example:9999", tls=TLSConfig(certificate="c.pem", key="k.pem", ca="ca.pem")
        ),
    ]
    sender = TokenSender(targets, attempts=2, retry_delay=1.0, timeout=3.0)
    assert_type(await sender.send(Token("access")), DeliveryReport)
    assert_type(sender.send_sync(Token("access")), DeliveryReport)


async def feeding() -> None:
    feed = TokenFeed("schwab", "/run/keepline/daemon.sock")
    tokens: AsyncIterator[Token] = aiter(feed)
    async for token in feed:
        assert_type(token, Token)
        assert_type(feed.get_latest(), Token | None)
    note(tokens)


def failing(error: KeeplineError) -> str:
    match error:
        case SignInRequired():
            return assert_type(error.command, str)
        case TokenUnavailable():
            assert_type(error.retry_at, datetime | None)
        case TokenRefused():
            return assert_type(error.code, str)
        case StorageError():
            assert_type(error.path, Path | None)
        case CredentialError():
            return assert_type(error.credential, str)
        case ConfigError():
            return assert_type(error.key, str)
        case TransientError() | PermanentError() | OutcomeUnknown():
            assert_type(error.retry_after, float | None)
        case APIError():
            return assert_type(error.category, str)
        case CircuitOpen() | RateLimited() | QueueFull():
            assert_type(error.retry_after, float | None)
        case Refused() | ProtocolError() | Closed() | _:
            return str(error)
    return ""


def errors_are_what_callers_catch() -> tuple[type[ValueError], type[OSError]]:
    return ConfigError, StorageError
