"""A use of every public name as a user would write it: checked by mypy --strict, never run."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import assert_type

import keepline
from keepline import (
    Account,
    APIError,
    AuthService,
    Bar,
    CircuitBreaker,
    CircuitOpen,
    CircuitState,
    Closed,
    ConfigError,
    CredentialError,
    DeliveryReport,
    ErrorHandler,
    Fill,
    Instrument,
    IntentKind,
    KeeplineError,
    OAuth2Issuer,
    Order,
    OrderGateway,
    OrderIntent,
    OrderOutcome,
    OrderStatus,
    OrderType,
    OutcomeState,
    OutcomeUnknown,
    PermanentError,
    Pipeline,
    Position,
    ProjectXClient,
    ProjectXIssuer,
    ProjectXTrading,
    ProtocolError,
    QueueFull,
    Quote,
    RateLimited,
    RateLimiter,
    Refused,
    RetryPolicy,
    SchwabClient,
    SchwabIssuer,
    SchwabTokenFile,
    SchwabTrading,
    Side,
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


async def calling(tokens: TokenManager, body: Mapping[str, object]) -> None:
    from keepline.http import HttpSession

    limiter = RateLimiter(
        {"limits": {"all": {"limit": 10, "window_seconds": 1.0, "endpoints": ["*"]}}}
    )
    await limiter.acquire("/api/Order/place", weight=1, priority="order", deadline=2.0)
    assert_type(limiter.try_acquire("all"), bool)
    assert_type(limiter.get_wait_time("all"), float)
    limiter.acquire_sync("all", priority="history")
    limiter.feedback("all", retry_after=3.0)
    limiter.reset()
    note(limiter.get_stats())
    breaker = CircuitBreaker({"minimum_calls": 20})
    assert_type(breaker.state, CircuitState)
    assert_type(await breaker.call(limiter.acquire, "all"), float)
    handler = ErrorHandler()
    category: str = handler.classify_error(429, "slow down")
    assert_type(handler.should_retry(TransientError("lost", category="network"), 1), bool)
    assert_type(handler.get_retry_delay(2, TransientError("lost")), float)
    decision = handler.handle_error(TimeoutError(), "GET /bars", 1)
    if decision or await decision:
        assert_type(decision.delay_seconds, float)
    note(category, handler.get_stats())
    async with HttpSession() as http:
        retry = RetryPolicy(attempts=2, deadline_seconds=10.0)
        line = Pipeline(
            http,
            "https://api.example",
            broker="mine",
            tokens=tokens,
            limiter=limiter,
            breaker=breaker,
            retry=retry,
        )
        place = line.operation("place", "POST", "/orders", priority="order")
        answer = await place(json=body)
        assert_type(answer.status, int)
        note(line.get_stats(), str(line))


async def trading_futures(tokens: TokenManager) -> None:
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime.now(UTC)
    async with ProjectXClient(
        tokens, base_url="https://api.topstepx.com", limiter=RateLimiter()
    ) as client:
        account = await client.account("50KTC")
        contract = await client.contract("CON.F.US.MNQ.U26")
        assert_type(contract.tick_size, Decimal | None)
        async for bar in client.bars(
            contract.id, start, end, "minute", 5, progress=lambda at: note(at.share)
        ):
            assert_type(bar, Bar)
        async with OrderGateway(ProjectXTrading(client), "data/topstep.orders") as gateway:
            wanted = OrderIntent(
                id="entry-1",
                account=str(account.id),
                instrument=contract.id,
                side=Side.BUY,
                quantity=Decimal(1),
                type=OrderType.LIMIT,
                limit_price=Decimal("21000.25"),
                stop_loss_ticks=40,
                take_profit_ticks=80,
            )
            outcome = await gateway.place(wanted)
            assert_type(outcome, OrderOutcome)
            if outcome.state is OutcomeState.UNKNOWN:
                outcome = await outcome.final()
            assert_type(outcome.order_id, str | None)
            await gateway.cancel(
                OrderIntent(
                    id="cancel-1",
                    kind=IntentKind.CANCEL,
                    account=wanted.account,
                    depends_on=(wanted.id,),
                )
            )
            note(gateway.unresolved())


async def trading_stocks(tokens: TokenManager) -> None:
    async with SchwabClient(tokens) as client:
        numbers = await client.account_numbers()
        quotes = await client.quotes(["AAPL", "MSFT"])
        assert_type(quotes, dict[str, Quote])
        assert_type(quotes["AAPL"].bid, float | None)
        orders = await client.orders(
            numbers[0], datetime(2025, 1, 1, tzinfo=UTC), datetime.now(UTC)
        )
        note([order.status.is_known for order in orders])
        placed = await client.place_order(
            numbers[0], {"orderType": "MARKET", "orderStrategyType": "SINGLE"}
        )
        assert_type(placed.order_id, int | None)
        gateway = OrderGateway(SchwabTrading(client, short_sales=True), Path("data/schwab.orders"))
        await gateway.start()
        await gateway.stop()


def words_of_the_trade(order: Order, fill: Fill, position: Position, account: Account) -> None:
    assert_type(order.status, OrderStatus)
    assert_type(order.type, OrderType | None)
    assert_type(order.status.is_final, bool)
    assert_type(fill.quantity * fill.side.sign, Decimal)
    assert_type(position.quantity, Decimal)
    assert_type(account.balance, Decimal | None)
    note(Instrument(id="CON.F.US.MNQ.U26", symbol="MNQU6", tick_size=Decimal("0.25")))


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
