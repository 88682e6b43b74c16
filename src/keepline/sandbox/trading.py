"""The trading addresses of the sandbox: who may ask, how often, and work that is done later than it is answered.

Invariants: a dead token gets 401 before anything else is looked at; a request over the venue's rate gets 429 and
changes nothing; every decision about orders is the market's.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from aiohttp import web

from keepline.sandbox.faults import Plan
from keepline.sandbox.market import Market
from keepline.sandbox.quota import Quota, Rate
from keepline.sandbox.replies import bearer
from keepline.sandbox.rest_projectx import ENDPOINTS, ProjectXRest
from keepline.sandbox.rest_schwab import ADDRESSES, Address, SchwabRequest, SchwabRest
from keepline.sandbox.venue import Reply

__all__ = ["PROJECTX", "SCHWAB", "Rates", "Route", "Trading"]

PROJECTX, SCHWAB = "projectx", "schwab"

_UNAUTHORIZED = {
    PROJECTX: Reply(401, "", {"WWW-Authenticate": "Bearer"}),
    SCHWAB: Reply(401, {"message": "Unauthorized", "errors": []}),
}
_TOO_MANY = {
    PROJECTX: Reply(429, ""),
    SCHWAB: Reply(429, {"message": "Too many requests", "errors": []}),
}

Work = Callable[[web.Request, float, Plan], Awaitable[Reply]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How often the venue lets a client ask.

    Attributes:
        general: ProjectX, everything but bars.
        history: ProjectX, bars.
        schwab: Schwab, everything.
    """

    general: Rate = Rate(200, 60.0)  # noqa: RUF009 - frozen
    history: Rate = Rate(50, 30.0)  # noqa: RUF009 - frozen
    schwab: Rate = Rate(120, 60.0)  # noqa: RUF009 - frozen


class Route(NamedTuple):
    """One address for the server: where, by which name faults call it, whose it is, and what it does."""

    method: str
    path: str
    route: str
    broker: str
    work: Work


class Trading:
    """Both brokers' faces over one market.

    Args:
        market: the venue's.
        accepts: whether a token opens the API at the venue's time.
        boottime: counts the rates.
        rates: how often.
        counts: where refusals are counted.
    """

    def __init__(
        self,
        market: Market,
        *,
        accepts: Callable[[str, float], bool],
        boottime: Callable[[], float],
        rates: Rates,
        counts: Counter[str],
    ) -> None:
        self._market = market
        self._accepts = accepts
        self._boottime = boottime
        self._counts = counts
        self._projectx, self._schwab = ProjectXRest(market), SchwabRest(market)
        self._general, self._history = Quota(rates.general), Quota(rates.history)
        self._every = Quota(rates.schwab)

    def routes(self) -> Iterator[Route]:
        """Every address; those without braces come before those that would swallow them."""
        for path, endpoint in ENDPOINTS.items():
            quota = self._history if endpoint.route == "history" else self._general
            yield Route("POST", path, endpoint.route, PROJECTX, self._work(PROJECTX, quota, path))
        for (method, path), address in ADDRESSES.items():
            work = self._work(SCHWAB, self._every, address)
            yield Route(method, path, address.route, SCHWAB, work)

    def _work(self, broker: str, quota: Quota, target: str | Address) -> Work:
        async def work(request: web.Request, now: float, plan: Plan) -> Reply:
            if not self._accepts(bearer(request), now):
                self._counts["unauthorized"] += 1
                return _UNAUTHORIZED[broker]
            if not quota.take(self._boottime()):
                self._counts["rate_limited"] += 1
                return _TOO_MANY[broker]
            do = self._deed(target, request, await request.read(), plan)
            true_now = now - plan.skew
            if plan.later is None:
                return do(true_now)
            self._market.advance(true_now)
            self._market.later(true_now + plan.later, do)
            return plan.reply or _TOO_MANY[broker]  # without a reply the answer is cut anyway

        return work

    def _deed(
        self, target: str | Address, request: web.Request, body: bytes, plan: Plan
    ) -> Callable[[float], Reply]:
        """What the request asks for, to be done at a time of the market."""
        if isinstance(target, str):
            face = self._projectx
            return lambda at: face.answer(target, body, now=at, terms=plan.terms)
        asked = SchwabRequest(
            path=dict(request.match_info),
            query=dict(request.query),
            body=body,
            base=f"{request.scheme}://{request.host}",
            now=0.0,
            terms=plan.terms,
        )
        return lambda at: self._schwab.answer(target, replace(asked, now=at))
