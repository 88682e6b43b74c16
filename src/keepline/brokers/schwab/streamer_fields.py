"""The numbers by which Schwab's streamer calls its fields, and our names for them.

Invariants: pure data; a number that nobody knew when this was written keeps its value under the name `field_N`; a name
means the same in every service.

Sources: Schwab's Streamer API guide; for CHART_EQUITY payloads that clients in the field recorded: they put the
sequence first, where the guide has the opening price.
"""

from collections.abc import Mapping
from types import MappingProxyType

__all__ = [
    "ACCOUNT_ACTIVITY",
    "BOOKS",
    "CHARTS",
    "FIELDS",
    "LEVEL_ONE",
    "SCREENERS",
    "all_fields",
    "field_name",
]

ACCOUNT_ACTIVITY = "ACCT_ACTIVITY"
"""The service that tells of orders and executions; it knows SUBS and UNSUBS alone."""

_EQUITIES = """
symbol bid_price ask_price last_price bid_size ask_size ask_id bid_id total_volume last_size high_price low_price
close_price exchange_id marginable description last_id open_price net_change high_52_weeks low_52_weeks pe_ratio
dividend_amount dividend_yield nav exchange_name dividend_date regular_quote regular_trade regular_last_price
regular_last_size regular_net_change security_status mark quote_time trade_time regular_trade_time bid_time ask_time
ask_mic_id bid_mic_id last_mic_id net_percent_change regular_percent_change mark_net_change mark_percent_change
hard_to_borrow_quantity hard_to_borrow_rate hard_to_borrow shortable post_market_net_change
post_market_percent_change
"""
_OPTIONS = """
symbol description bid_price ask_price last_price high_price low_price close_price total_volume open_interest
volatility intrinsic_value expiration_year multiplier digits open_price bid_size ask_size last_size net_change
strike_price contract_type underlying expiration_month deliverables time_value expiration_day days_to_expiration delta
gamma theta vega rho security_status theoretical_value underlying_price expiration_type mark quote_time trade_time
exchange_id exchange_name last_trading_day settlement_type net_percent_change mark_net_change mark_percent_change
implied_yield penny_pilot option_root high_52_weeks low_52_weeks indicative_ask_price indicative_bid_price
indicative_quote_time exercise_type
"""
_FUTURES = """
symbol bid_price ask_price last_price bid_size ask_size bid_id ask_id total_volume last_size quote_time trade_time
high_price low_price close_price exchange_id description last_id open_price net_change net_percent_change exchange_name
security_status open_interest mark tick tick_amount product price_format trading_hours tradable multiplier active
settlement_price active_symbol expiration_date expiration_style ask_time bid_time quoted_in_session settlement_date
"""
_FUTURES_OPTIONS = """
symbol bid_price ask_price last_price bid_size ask_size bid_id ask_id total_volume last_size quote_time trade_time
high_price low_price close_price last_id description open_price open_interest mark tick tick_amount multiplier
settlement_price underlying strike_price expiration_date expiration_style contract_type security_status exchange_id
exchange_name
"""
_FOREX = """
symbol bid_price ask_price last_price bid_size ask_size total_volume last_size quote_time trade_time high_price
low_price close_price exchange_id description open_price net_change net_percent_change exchange_name digits
security_status tick
tick_amount product trading_hours tradable market_maker high_52_weeks low_52_weeks mark
"""
_BOOK = "symbol book_time bids asks"
_CHART_EQUITY = "symbol sequence open high low close volume chart_time chart_day"
_CHART_FUTURES = "symbol chart_time open high low close volume"
_SCREENER = "symbol timestamp sort_field frequency items"
_ACTIVITY = "subscription account message_type message_data"

FIELDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        service: tuple(names.split())
        for service, names in (
            ("LEVELONE_EQUITIES", _EQUITIES),
            ("LEVELONE_OPTIONS", _OPTIONS),
            ("LEVELONE_FUTURES", _FUTURES),
            ("LEVELONE_FUTURES_OPTIONS", _FUTURES_OPTIONS),
            ("LEVELONE_FOREX", _FOREX),
            ("NYSE_BOOK", _BOOK),
            ("NASDAQ_BOOK", _BOOK),
            ("OPTIONS_BOOK", _BOOK),
            ("CHART_EQUITY", _CHART_EQUITY),
            ("CHART_FUTURES", _CHART_FUTURES),
            ("SCREENER_EQUITY", _SCREENER),
            ("SCREENER_OPTION", _SCREENER),
            (ACCOUNT_ACTIVITY, _ACTIVITY),
        )
    }
)
"""Every service with the names of its fields; a field's number is its place."""

LEVEL_ONE = tuple(service for service in FIELDS if service.startswith("LEVELONE_"))
"""Services that tell changed fields alone."""

BOOKS = tuple(service for service in FIELDS if service.endswith("_BOOK"))
"""Services that tell a whole book each time."""

CHARTS = tuple(service for service in FIELDS if service.startswith("CHART_"))
"""Services that tell a candle each minute."""

SCREENERS = tuple(service for service in FIELDS if service.startswith("SCREENER_"))
"""Services that tell a whole list each time; their keys are `PREFIX_SORTFIELD_FREQUENCY`, not symbols."""


def all_fields(service: str) -> str:
    """The numbers of all fields of a service, as a request names them: `0,1,2,3`.

    Raises:
        KeyError: there is no such service.
    """
    return ",".join(str(number) for number in range(len(FIELDS[service])))


def field_name(service: str, number: str) -> str:
    """Our name of a field; `field_60` for one that is not known."""
    names = FIELDS.get(service, ())
    if number.isascii() and number.isdecimal() and len(number) < 4 and int(number) < len(names):
        return names[int(number)]
    return f"field_{number}"
