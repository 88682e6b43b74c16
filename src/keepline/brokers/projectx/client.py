"""The ProjectX Gateway's REST API (TopstepX and other firms), typed, every call through the pipeline.

Invariants: what makes no sense is refused before anything is sent; reads are repeated, a mutation is sent at most once
and ends as `OutcomeUnknown` without a trustworthy answer; a moment goes out in UTC with milliseconds and Z.

Sources: gateway.docs.projectx.com and the Gateway API's OpenAPI document, read in 2025-09.
"""

from collections.abc import AsyncIterator, Callable
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar, TypeVar

from keepline.brokers.checks import amount, id_number, moment, span, text, wire_moment
from keepline.brokers.projectx.bars import LARGEST_PAGE, bars_body, bars_of, pieces_of
from keepline.brokers.projectx.errors import read_body
from keepline.brokers.projectx.messages import (
    AccountInfo,
    AccountsAnswer,
    BarsAnswer,
    BarUnit,
    ContractAnswer,
    ContractInfo,
    ContractsAnswer,
    OrderChange,
    OrderInfo,
    OrderRequest,
    OrdersAnswer,
    PlaceAnswer,
    PositionInfo,
    PositionsAnswer,
    TradeInfo,
    TradesAnswer,
)
from keepline.brokers.projectx.rules import change_body, close_body, order_body
from keepline.brokers.session import BrokerClient, decoder
from keepline.brokers.windows import Progress
from keepline.clock import Clock
from keepline.errors import ConfigError, PermanentError
from keepline.http import Response
from keepline.model import Bar
from keepline.resilience import Breaker, Http, Limiter, Operation, RetryPolicy
from keepline.resilience.bearer import TokenSource

__all__ = ["PROJECTX_LIMITS", "ProjectXClient"]

PROJECTX_LIMITS = {
    "history": {"limit": 30, "window_seconds": 30.0, "endpoints": ("*/History/*",)},
    "general": {"limit": 200, "window_seconds": 60.0, "endpoints": ("*",)},
}
"""One documented reading says 50 bars calls per 30 s, another 30: the safer one, until `[limits]` says otherwise."""

T = TypeVar("T")


class ProjectXClient(BrokerClient):
    """A typed client of the ProjectX Gateway.

    Args:
        tokens: what gives the newest token: a `TokenManager`, anything with `await get_token()`, or an async callable.
        base_url: the firm's gateway.
        http: a session to share; stays the caller's to close.
        limiter: share one between clients of the same user; by default 30 bar calls per 30 s and 200 others per 60 s.
        breaker: refuses calls while the gateway fails.
        retry: how often and how long.
        timeout_seconds: for one attempt.
        clock: for tests.

    Raises:
        ConfigError: the address is not https (http on loopback alone). All methods: an argument makes no sense;
            nothing was sent.

    All methods also raise what `keepline.resilience.Operation` raises: `TransientError`, `PermanentError`,
    `OutcomeUnknown` (mutations alone), `CircuitOpen`, `RateLimited`, `Refused` and `CredentialError`.

    Example:
        >>> async with ProjectXClient(manager) as client:
        ...     account = await client.account("50KTC-V2-1234")
        ...     print(await client.open_positions(account.id))
    """

    name: ClassVar[str] = "projectx"
    limits = PROJECTX_LIMITS

    def __init__(
        self,
        tokens: TokenSource,
        *,
        base_url: str = "https://api.topstepx.com",
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
        self._ticks: dict[str, Decimal] = {}
        line = self.pipeline
        self._ping = line.operation("ping", "GET", "/api/Status/ping", expect="any")
        self._accounts = self._read("accounts", "/api/Account/search", AccountsAnswer)
        self._contracts = self._read("contracts", "/api/Contract/search", ContractsAnswer)
        self._contract = self._read("contract", "/api/Contract/searchById", ContractAnswer)
        self._available = self._read("available", "/api/Contract/available", ContractsAnswer)
        self._bars = self._read("bars", "/api/History/retrieveBars", BarsAnswer, "history")
        self._orders = self._read("orders", "/api/Order/search", OrdersAnswer)
        self._open_orders = self._read("open_orders", "/api/Order/searchOpen", OrdersAnswer)
        self._positions = self._read("positions", "/api/Position/searchOpen", PositionsAnswer)
        self._trades = self._read("trades", "/api/Trade/search", TradesAnswer)
        # what takes risk away goes before what adds some
        self._place = self._change("place", "/api/Order/place", "order", decoder(PlaceAnswer))
        self._modify = self._change("modify", "/api/Order/modify", "order", _nothing)
        self._cancel = self._change("cancel", "/api/Order/cancel", "cancel", _nothing)
        self._close = self._change("close", "/api/Position/closeContract", "cancel", _nothing)
        self._partial_close = self._change(
            "partial_close", "/api/Position/partialCloseContract", "cancel", _nothing
        )

    # ---------------------------------------------------------------------------------------------------------- reads

    async def ping(self) -> str:
        """What the gateway answers to a ping: `pong`."""
        return (await self._ping()).text.strip().strip('"')

    async def accounts(self, *, only_active: bool = True) -> tuple[AccountInfo, ...]:
        """The user's accounts."""
        answer = await self._accounts(json={"onlyActiveAccounts": bool(only_active)})
        return answer.accounts or ()

    async def account(self, name: str | int | None = None) -> AccountInfo:
        """One account by its name or id; without one, the only account that can trade.

        Raises:
            ConfigError: there is none, or several would do; lists them.
        """
        found = await self.accounts()
        if name is None:
            fitting = [account for account in found if account.can_trade is not False]
        else:
            fitting = [a for a in found if str(name) in (a.name, str(a.id))]
        if len(fitting) == 1:
            return fitting[0]
        there = ", ".join(account.name for account in found) or "none"
        what = "which account?" if name is None else f"no account {str(name)!r}"
        raise ConfigError(f"{what}; there is {there}", key="account")

    async def search_contracts(self, words: str, *, live: bool = False) -> tuple[ContractInfo, ...]:
        """Contracts whose name or description fits, at most 20.

        Args:
            words: for example `MNQ`.
            live: the live data subscription; a practice account needs False.
        """
        body = {"searchText": text(words, "words"), "live": bool(live)}
        return self._known((await self._contracts(json=body)).contracts)

    async def contract(self, contract_id: str) -> ContractInfo:
        """One contract; from then on the prices of its orders are held against its tick.

        Raises:
            PermanentError: there is none of that id.
        """
        body = {"contractId": text(contract_id, "contract_id")}
        found = (await self._contract(json=body)).contract
        if found is None:
            raise PermanentError(f"no contract {contract_id!r}", endpoint=self._contract.endpoint)
        return self._known((found,))[0]

    async def available_contracts(self, *, live: bool = False) -> tuple[ContractInfo, ...]:
        """All contracts that can be traded."""
        return self._known((await self._available(json={"live": bool(live)})).contracts)

    def tick_size(self, contract_id: str) -> Decimal | None:
        """The contract's tick, None before the contract was seen."""
        return self._ticks.get(contract_id)

    async def retrieve_bars(
        self,
        contract_id: str,
        start: datetime,
        end: datetime,
        unit: BarUnit | str = BarUnit.MINUTE,
        number: int = 1,
        *,
        limit: int = LARGEST_PAGE,
        live: bool = False,
        partial: bool = False,
    ) -> tuple[Bar, ...]:
        """One call for bars, oldest first; `bars` is the one without a limit.

        Args:
            contract_id: for example `CON.F.US.MNQ.U26`.
            start: aware.
            end: aware, after the start.
            unit: a `BarUnit`, or its name: `second`, `minute`, `hour`, `day`, `week`, `month`.
            number: units in a bar.
            limit: at most so many bars, 20,000 at most.
            live: the live data subscription; a practice account needs False.
            partial: whether the bar that is still growing is wanted too.
        """
        body = bars_body(
            contract_id, start, end, unit, number, limit=limit, live=live, partial=partial
        )
        return bars_of(await self._bars(json=body))

    async def bars(
        self,
        contract_id: str,
        start: datetime,
        end: datetime,
        unit: BarUnit | str = BarUnit.MINUTE,
        number: int = 1,
        *,
        live: bool = False,
        partial: bool = False,
        progress: Callable[[Progress], object] | None = None,
    ) -> AsyncIterator[Bar]:
        """All bars of a span of any length, oldest first, each once, in as many calls as it takes.

        Args:
            contract_id, start, end, unit, number, live, partial: as in `retrieve_bars`.
            progress: called after each call.
        """
        pieces = pieces_of(start, end, unit, number)
        last: datetime | None = None
        rows = 0
        for done, (left, right) in enumerate(pieces, 1):
            found = await self.retrieve_bars(
                contract_id, left, right, unit, number, live=live, partial=partial
            )
            for bar in found:
                if last is None or bar.at > last:  # pieces share their edge
                    last, rows = bar.at, rows + 1
                    yield bar
            if progress is not None:
                progress(Progress(done, len(pieces), rows, right))

    async def search_orders(
        self, account_id: int, start: datetime, end: datetime | None = None
    ) -> tuple[OrderInfo, ...]:
        """Orders of a time span, whatever became of them; without an end, until now."""
        return (await self._orders(json=_window(account_id, start, end))).orders or ()

    async def open_orders(self, account_id: int) -> tuple[OrderInfo, ...]:
        """Orders that are working."""
        body = {"accountId": id_number(account_id, "account_id")}
        return (await self._open_orders(json=body)).orders or ()

    async def open_positions(self, account_id: int) -> tuple[PositionInfo, ...]:
        """Positions that are not flat."""
        body = {"accountId": id_number(account_id, "account_id")}
        return (await self._positions(json=body)).positions or ()

    async def search_trades(
        self, account_id: int, start: datetime, end: datetime | None = None
    ) -> tuple[TradeInfo, ...]:
        """Half-turns (fills) of a time span; without an end, until now."""
        return (await self._trades(json=_window(account_id, start, end))).trades or ()

    # ------------------------------------------------------------------------------------------------------ mutations

    async def place_order(
        self, order: OrderRequest, *, deadline_seconds: float | None = None
    ) -> int | None:
        """Place an order, once.

        Args:
            order: what is wanted.
            deadline_seconds: not sent later than this.

        Returns:
            The order's id; None when the gateway took the order and told none (look it up by its tag).

        Raises:
            PermanentError: refused; nothing was placed.
            OutcomeUnknown: no trustworthy answer, or `OrderPending`: look it up, do not send it again.
        """
        body = order_body(order, self._ticks.get(order.contract_id))
        found = (await self._place(json=body, deadline_seconds=deadline_seconds)).order_id
        return found if found is not None and found > 0 else None

    async def modify_order(
        self, change: OrderChange, *, deadline_seconds: float | None = None
    ) -> None:
        """Change size or prices of a working order; it keeps its id.

        Raises:
            PermanentError: refused; the order is as it was.
            OutcomeUnknown: no trustworthy answer.
        """
        body = change_body(change, self._ticks.get(change.contract_id))
        await self._modify(json=body, deadline_seconds=deadline_seconds)

    async def cancel_order(
        self, account_id: int, order_id: int, *, deadline_seconds: float | None = None
    ) -> None:
        """Cancel a working order.

        Raises:
            PermanentError: refused, for example because it is filled.
            OutcomeUnknown: no trustworthy answer; a gateway says `UnknownError` of an order that has ended already.
        """
        body = {
            "accountId": id_number(account_id, "account_id"),
            "orderId": id_number(order_id, "order_id"),
        }
        await self._cancel(json=body, deadline_seconds=deadline_seconds)

    async def close_position(
        self, account_id: int, contract_id: str, *, deadline_seconds: float | None = None
    ) -> None:
        """Close the whole position at the market; protective orders of it may go on working.

        Raises:
            PermanentError: refused, for example because there is no position.
            OutcomeUnknown: no trustworthy answer.
        """
        body = close_body(account_id, contract_id)
        await self._close(json=body, deadline_seconds=deadline_seconds)

    async def partial_close_position(
        self,
        account_id: int,
        contract_id: str,
        size: Decimal | int,
        *,
        deadline_seconds: float | None = None,
    ) -> None:
        """Close so many contracts of a position at the market.

        Raises:
            PermanentError: refused.
            OutcomeUnknown: no trustworthy answer.
        """
        body = close_body(account_id, contract_id, amount(size, "size", whole=True))
        await self._partial_close(json=body, deadline_seconds=deadline_seconds)

    # --------------------------------------------------------------------------------------------------------- helpers

    def _read(self, name: str, path: str, kind: type[T], priority: str = "query") -> Operation[T]:
        return self.pipeline.operation(
            name, "POST", path, mutation=False, priority=priority, decode=decoder(kind)
        )

    def _change(
        self, name: str, path: str, priority: str, decode: Callable[[Response], T]
    ) -> Operation[T]:
        return self.pipeline.operation(
            name, "POST", path, mutation=True, priority=priority, decode=decode
        )

    def _known(self, contracts: tuple[ContractInfo, ...] | None) -> tuple[ContractInfo, ...]:
        for contract in contracts or ():
            if contract.tick_size is not None and contract.tick_size > 0:
                self._ticks[contract.id] = contract.tick_size
        return contracts or ()


def _nothing(_: Response) -> None:
    """An envelope that says yes and no more; the reader has looked into it."""


def _window(account_id: object, start: object, end: object) -> dict[str, Any]:
    body = {
        "accountId": id_number(account_id, "account_id"),
        "startTimestamp": wire_moment(moment(start, "start")),
    }
    if end is not None:
        body["endTimestamp"] = wire_moment(span(start, end)[1])
    return body
