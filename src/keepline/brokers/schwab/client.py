"""Charles Schwab's Trader API and market data, typed, every call through the pipeline.

Invariants: what makes no sense is refused before anything is sent; POST, PUT and DELETE leave at most once (a PUT is a
new order); account numbers stand in no path, log line or error: Schwab's hash of them does, in the path alone.

Sources: the Trader API's OpenAPI document 1.0.0 and the market data API's description, as kept by clients in the field.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, ClassVar, TypeVar

from keepline.brokers.checks import id_number, span, text, wire_moment
from keepline.brokers.schwab.errors import read_body
from keepline.brokers.schwab.history import (
    LONGEST_LISTING,
    NEWEST_LISTING,
    bars_of,
    candles_query,
    history_pieces,
    quote_of,
)
from keepline.brokers.schwab.messages import (
    AccountInfo,
    AccountNumber,
    CandlesAnswer,
    OrderInfo,
    OrderRequest,
    OrderStatus,
    Placed,
    Preview,
    QuoteInfo,
    SecuritiesAccount,
    UserPreference,
)
from keepline.brokers.schwab.rules import order_body, order_id_in
from keepline.brokers.session import BrokerClient, decoder
from keepline.brokers.windows import Progress, split, without_repeats
from keepline.clock import Clock
from keepline.errors import ConfigError
from keepline.http import Response
from keepline.model import Bar, Quote
from keepline.resilience import Breaker, Http, Limiter, Operation, RetryPolicy
from keepline.resilience.bearer import TokenSource
from keepline.telemetry import shortened

__all__ = ["SCHWAB_LIMITS", "SchwabClient"]

SCHWAB_LIMITS = {"schwab": {"limit": 120, "window_seconds": 60.0, "endpoints": ("*",)}}
"""No quota is published for reading; 120 a minute is what clients in the field report for everything."""

T = TypeVar("T")
Order = OrderRequest | Mapping[str, Any]

_ORDERS = "/trader/v1/accounts/{account}/orders"
_PAGE = 500  # of 3,000 allowed: an order takes some 2 kB, a bracket several times that
_SHORTEST_WINDOW = timedelta(seconds=1)


class SchwabClient(BrokerClient):
    """A typed client of Charles Schwab's Trader API. Accounts are named by their number.

    Args:
        tokens: what gives the newest token: a `TokenManager`, anything with `await get_token()`, or an async callable.
        base_url: where the API lives.
        http: a session to share; stays the caller's to close.
        limiter: share one between clients of the same app; by default 120 calls in any minute.
        breaker: refuses calls while Schwab fails.
        retry: how often and how long.
        timeout_seconds: for one attempt.
        clock: for tests.

    Raises:
        ConfigError: the address is not https (http on loopback alone). All methods: an argument makes no sense;
            nothing was sent.

    All methods also raise what `keepline.resilience.Operation` raises: `TransientError`, `PermanentError`,
    `OutcomeUnknown` (mutations alone), `CircuitOpen`, `RateLimited`, `Refused` and `CredentialError`.

    Example:
        >>> async with SchwabClient(manager) as client:
        ...     for number in await client.account_numbers():
        ...         print(await client.account(number, positions=True))
    """

    name: ClassVar[str] = "schwab"
    limits = SCHWAB_LIMITS

    def __init__(
        self,
        tokens: TokenSource,
        *,
        base_url: str = "https://api.schwabapi.com",
        http: Http | None = None,
        limiter: Limiter | None = None,
        breaker: Breaker | None = None,
        retry: RetryPolicy | None = None,
        timeout_seconds: float = 30.0,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(
            tokens,
            base_url,
            reader=read_body,
            http=http,
            limiter=limiter,
            breaker=breaker,
            retry=retry,
            timeout_seconds=timeout_seconds,
            clock=clock,
        )
        self._hashes: dict[str, str] = {}
        line = self.pipeline
        self._numbers = self._get(
            "account_numbers", "/trader/v1/accounts/accountNumbers", tuple[AccountNumber, ...]
        )
        self._accounts = self._get("accounts", "/trader/v1/accounts", tuple[AccountInfo, ...])
        self._account = self._get("account", "/trader/v1/accounts/{account}", AccountInfo)
        self._orders = self._get("orders", _ORDERS, tuple[OrderInfo, ...])
        self._all_orders = self._get("all_orders", "/trader/v1/orders", tuple[OrderInfo, ...])
        self._order = self._get("order", f"{_ORDERS}/{{order}}", OrderInfo)
        self._preference = self._get("preference", "/trader/v1/userPreference", UserPreference)
        self._quotes = self._get("quotes", "/marketdata/v1/quotes", dict[str, QuoteInfo])
        self._candles = self._get("bars", "/marketdata/v1/pricehistory", CandlesAnswer, "history")
        self._preview = line.operation(
            "preview", "POST", "/trader/v1/accounts/{account}/previewOrder",
            mutation=False, priority="query", decode=decoder(Preview),
        )  # fmt: skip
        self._place = line.operation("place", "POST", _ORDERS, priority="order", decode=_placed)
        self._replace = line.operation(
            "replace", "PUT", f"{_ORDERS}/{{order}}", priority="order", decode=_placed
        )
        self._cancel = line.operation(
            "cancel", "DELETE", f"{_ORDERS}/{{order}}", priority="cancel", decode=_empty
        )

    # ------------------------------------------------------------------------------------------------------- accounts

    async def account_numbers(self) -> tuple[str, ...]:
        """The numbers of the accounts that the token reaches."""
        found = await self._numbers()
        self._hashes = {row.account_number: row.hash_value for row in found}
        return tuple(self._hashes)

    async def account_hash(self, number: str | int) -> str:
        """What stands for an account in paths; asked once, and again for a number that is not known yet.

        Raises:
            ConfigError: the token does not reach such an account.
        """
        if isinstance(number, bool) or not isinstance(number, str | int):
            raise ConfigError(
                f"is an account's number, not a {type(number).__name__}", key="account"
            )
        wanted = text(str(number), "account")
        if wanted not in self._hashes:
            await self.account_numbers()
        if wanted not in self._hashes:
            ends = ", ".join(map(shortened, self._hashes)) or "none"
            raise ConfigError(
                f"no account {shortened(wanted)}; the token reaches {ends}", key="account"
            )
        return self._hashes[wanted]

    async def accounts(self, *, positions: bool = False) -> tuple[SecuritiesAccount, ...]:
        """All accounts with their balances, and their positions if wanted."""
        rows = await self._accounts(params=_fields(positions))
        return tuple(row.securities_account for row in rows)

    async def account(self, number: str | int, *, positions: bool = False) -> SecuritiesAccount:
        """One account with its balances, and its positions if wanted."""
        place = {"account": await self.account_hash(number)}
        return (await self._account(fields=place, params=_fields(positions))).securities_account

    async def user_preference(self) -> UserPreference:
        """Where the streamer is and how to introduce oneself there."""
        return await self._preference()

    # --------------------------------------------------------------------------------------------------------- orders

    async def order(self, account: str | int, order_id: int) -> OrderInfo:
        """One order.

        Raises:
            PermanentError: there is none of that id.
        """
        return await self._order(fields=await self._place_of(account, order_id))

    async def orders(
        self,
        account: str | int,
        start: datetime,
        end: datetime,
        *,
        status: OrderStatus | str | None = None,
    ) -> tuple[OrderInfo, ...]:
        """All orders of an account that were entered in a span of any length, oldest first.

        Args:
            account: its number.
            start: aware.
            end: aware, after the start.
            status: of this status alone.
        """
        begin, finish = span(start, end)
        place = {"account": await self.account_hash(account)}
        found: list[OrderInfo] = []
        for left, right in split(begin, finish, LONGEST_LISTING):
            found += await self._listed(self._orders, left, right, status, place)
        return _in_order(found)

    async def all_orders(
        self, start: datetime, end: datetime, *, status: OrderStatus | str | None = None
    ) -> tuple[OrderInfo, ...]:
        """The same for all accounts; further back than 60 days they are asked one by one."""
        begin, finish = span(start, end)
        if begin >= self.clock.wall() - NEWEST_LISTING:
            return _in_order(await self._listed(self._all_orders, begin, finish, status, None))
        found: list[OrderInfo] = []
        for number in await self.account_numbers():
            found += await self.orders(number, begin, finish, status=status)
        return _in_order(found)

    async def place_order(
        self, account: str | int, order: Order, *, deadline_seconds: float | None = None
    ) -> Placed:
        """Place an order, once. A 201 says that it was taken, not that it works.

        Args:
            account: its number.
            order: an order of one leg, or the API's own JSON.
            deadline_seconds: not sent later than this.

        Returns:
            Its id, None when Schwab told none.

        Raises:
            PermanentError: refused; nothing was placed.
            OutcomeUnknown: no trustworthy answer: list the orders and compare, do not send it again.
        """
        body = order_body(order)
        place = {"account": await self.account_hash(account)}
        return await self._place(fields=place, json=body, deadline_seconds=deadline_seconds)

    async def replace_order(
        self,
        account: str | int,
        order_id: int,
        order: Order,
        *,
        deadline_seconds: float | None = None,
    ) -> Placed:
        """Cancel an order and place another in its stead, once: the new one has a new id.

        Raises:
            PermanentError: refused; the order is as it was.
            OutcomeUnknown: no trustworthy answer.
        """
        body = order_body(order)
        place = await self._place_of(account, order_id)
        return await self._replace(fields=place, json=body, deadline_seconds=deadline_seconds)

    async def cancel_order(
        self, account: str | int, order_id: int, *, deadline_seconds: float | None = None
    ) -> None:
        """Ask for an order to be cancelled; it may be filled before that.

        Raises:
            PermanentError: refused, for example because it has ended.
            OutcomeUnknown: no trustworthy answer.
        """
        place = await self._place_of(account, order_id)
        await self._cancel(fields=place, deadline_seconds=deadline_seconds)

    async def preview_order(self, account: str | int, order: Order) -> Preview:
        """What would become of an order; nothing is placed."""
        body = order_body(order)
        return await self._preview(fields={"account": await self.account_hash(account)}, json=body)

    # ---------------------------------------------------------------------------------------------------- market data

    async def quotes(self, symbols: Iterable[str]) -> dict[str, Quote]:
        """Quotes by symbol; a symbol that Schwab does not know is not in it."""
        if isinstance(symbols, str) or not isinstance(symbols, Iterable):
            raise ConfigError(
                f"is a list of symbols such as ['AAPL'], not {symbols!r}", key="symbols"
            )
        wanted = [text(symbol, "symbols") for symbol in symbols]
        if comma := next((symbol for symbol in wanted if "," in symbol), None):
            raise ConfigError(f"are several in one: {comma!r}", key="symbols")
        if not wanted:
            raise ConfigError("at least one symbol is needed", key="symbols")
        rows = await self._quotes(params={"symbols": ",".join(wanted), "fields": "quote"})
        now = self.clock.wall()
        return {name: quote_of(name, row, now) for name, row in rows.items() if name != "errors"}

    async def price_history(
        self,
        symbol: str,
        start: datetime,
        end: datetime,
        unit: str = "minute",
        number: int = 1,
        *,
        extended: bool = False,
    ) -> tuple[Bar, ...]:
        """One call for bars, oldest first; `bars` is the one without a limit.

        Args:
            symbol: for example `AAPL`.
            start: aware.
            end: aware, after the start.
            unit: `minute`, `day`, `week` or `month`.
            number: of minutes 1, 5, 10, 15 or 30, else 1.
            extended: before and after regular hours, too.
        """
        query = candles_query(symbol, start, end, unit, number, extended=extended)
        return bars_of(await self._candles(params=query))

    async def bars(
        self,
        symbol: str,
        start: datetime,
        end: datetime,
        unit: str = "minute",
        number: int = 1,
        *,
        extended: bool = False,
        progress: Callable[[Progress], object] | None = None,
    ) -> AsyncIterator[Bar]:
        """All bars of a span of any length, oldest first, each once, in as many calls as it takes.

        Args:
            symbol, start, end, unit, number, extended: as in `price_history`. Of minutes Schwab keeps some 48 days.
            progress: called after each call.
        """
        pieces = history_pieces(start, end, unit, number)
        last: datetime | None = None
        rows = 0
        for done, (left, right) in enumerate(pieces, 1):
            for bar in await self.price_history(
                symbol, left, right, unit, number, extended=extended
            ):
                if last is None or bar.at > last:  # pieces share their edge
                    last, rows = bar.at, rows + 1
                    yield bar
            if progress is not None:
                progress(Progress(done, len(pieces), rows, right))

    # --------------------------------------------------------------------------------------------------------- helpers

    def _get(self, name: str, path: str, kind: type[T], priority: str = "query") -> Operation[T]:
        return self.pipeline.operation(name, "GET", path, priority=priority, decode=decoder(kind))

    async def _place_of(self, account: str | int, order_id: object) -> dict[str, str]:
        order = str(id_number(order_id, "order_id"))
        return {"account": await self.account_hash(account), "order": order}

    async def _listed(
        self,
        operation: Operation[tuple[OrderInfo, ...]],
        start: datetime,
        end: datetime,
        status: OrderStatus | str | None,
        place: Mapping[str, str] | None,
    ) -> tuple[OrderInfo, ...]:
        """One window; a full page is asked again in halves, since the rest of it was cut off."""
        query = {"fromEnteredTime": wire_moment(start), "toEnteredTime": wire_moment(end)}
        query["maxResults"] = str(_PAGE)
        if status is not None:
            query["status"] = text(str(status), "status")
        found = await operation(fields=place, params=query)
        if len(found) < _PAGE or end - start <= _SHORTEST_WINDOW:
            return found
        middle = start + (end - start) / 2
        older = await self._listed(operation, start, middle, status, place)
        return older + await self._listed(operation, middle, end, status, place)


def _fields(positions: bool) -> dict[str, str] | None:
    return {"fields": "positions"} if positions else None


def _in_order(orders: Iterable[OrderInfo]) -> tuple[OrderInfo, ...]:
    rows = sorted(orders, key=lambda order: (order.entered_time, order.order_id))
    return tuple(without_repeats(rows, lambda order: order.order_id))


def _placed(answer: Response) -> Placed:
    """201 with the order's address, or with nothing; a page inside a good status is no yes."""
    order_id = order_id_in(answer.headers.get("location", ""))
    if answer.status != 201 or order_id is None:
        _empty(answer)
    return Placed(order_id=order_id)


def _empty(answer: Response) -> None:
    if answer.body.strip():
        raise ValueError("an empty body is expected")
