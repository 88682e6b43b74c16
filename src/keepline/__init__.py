"""Keepline keeps trading bots logged in and their orders single: tokens, calls that survive, brokers, orders.

The front door is lazy: a name's module is imported when the name is first used, so a bot that wants one class pays for
that class. Invariant: `import keepline` itself imports nothing beyond the standard library's `importlib`.
"""

from importlib import import_module

TYPE_CHECKING = False  # type checkers take it for true; importing typing for it would cost more than all the rest
if TYPE_CHECKING:
    from keepline.brokers.base import IntentKind, OrderIntent
    from keepline.brokers.orders.gateway import OrderGateway
    from keepline.brokers.orders.outcome import OrderOutcome, OutcomeState
    from keepline.brokers.projectx.client import ProjectXClient
    from keepline.brokers.projectx.stream import ProjectXStream
    from keepline.brokers.projectx.trading import ProjectXTrading
    from keepline.brokers.schwab.client import SchwabClient
    from keepline.brokers.schwab.stream import SchwabStream
    from keepline.brokers.schwab.trading import SchwabTrading
    from keepline.credentials.issuer import (
        AuthService,
        OAuth2Issuer,
        ProjectXIssuer,
        SchwabIssuer,
        StaticIssuer,
    )
    from keepline.credentials.lifecycle import TokenManagerConfig, TokenState
    from keepline.credentials.manager import TokenManager
    from keepline.credentials.schwab_file import SchwabTokenFile
    from keepline.credentials.storage import TokenStorage
    from keepline.credentials.token import Token
    from keepline.desk.notify import (
        notify_alert,
        notify_exposure_change,
        notify_lp_status_change,
        notify_routing_decision,
        use_publisher,
    )
    from keepline.errors import (
        APIError,
        CircuitOpen,
        Closed,
        ConfigError,
        CredentialError,
        KeeplineError,
        OutcomeUnknown,
        PermanentError,
        ProtocolError,
        QueueFull,
        RateLimited,
        Refused,
        SignInRequired,
        StorageError,
        StreamNotLive,
        TokenRefused,
        TokenUnavailable,
        TransientError,
    )
    from keepline.hub.publisher import HubPublisher
    from keepline.hub.server import AnalyticsHub
    from keepline.model import (
        Account,
        Bar,
        DepthLevel,
        DepthUpdate,
        Fill,
        Instrument,
        MarketTrade,
        Order,
        OrderStatus,
        OrderType,
        Position,
        Quote,
        Side,
    )
    from keepline.relay.address import TLSConfig
    from keepline.relay.feed import TokenFeed
    from keepline.relay.receiver import TokenReceiver, TokenReceiverConfig
    from keepline.relay.sender import DeliveryReport, Target, TokenSender
    from keepline.resilience.breaker import CircuitBreaker
    from keepline.resilience.circuit import CircuitState
    from keepline.resilience.handler import ErrorHandler
    from keepline.resilience.limiter import RateLimiter
    from keepline.resilience.pipeline import Pipeline
    from keepline.resilience.retry import RetryPolicy
    from keepline.stream.connection import SignalRConnection
    from keepline.stream.events import ConnectionState, EventKind, StreamEvent, StreamMessage
    from keepline.stream.health import HealthStatus
    from keepline.stream.manager import EventRouter, StreamManager
    from keepline.stream.port import Topic
    from keepline.stream.settings import StreamSettings
    from keepline.stream.signalr_config import StreamConfig
    from keepline.stream.signalr_manager import SignalRConnectionManager

__version__ = "0.1.0"

__all__ = [
    "APIError",
    "Account",
    "AnalyticsHub",
    "AuthService",
    "Bar",
    "CircuitBreaker",
    "CircuitOpen",
    "CircuitState",
    "Closed",
    "ConfigError",
    "ConnectionState",
    "CredentialError",
    "DeliveryReport",
    "DepthLevel",
    "DepthUpdate",
    "ErrorHandler",
    "EventKind",
    "EventRouter",
    "Fill",
    "HealthStatus",
    "HubPublisher",
    "Instrument",
    "IntentKind",
    "KeeplineError",
    "MarketTrade",
    "OAuth2Issuer",
    "Order",
    "OrderGateway",
    "OrderIntent",
    "OrderOutcome",
    "OrderStatus",
    "OrderType",
    "OutcomeState",
    "OutcomeUnknown",
    "PermanentError",
    "Pipeline",
    "Position",
    "ProjectXClient",
    "ProjectXIssuer",
    "ProjectXStream",
    "ProjectXTrading",
    "ProtocolError",
    "QueueFull",
    "Quote",
    "RateLimited",
    "RateLimiter",
    "Refused",
    "RetryPolicy",
    "SchwabClient",
    "SchwabIssuer",
    "SchwabStream",
    "SchwabTokenFile",
    "SchwabTrading",
    "Side",
    "SignInRequired",
    "SignalRConnection",
    "SignalRConnectionManager",
    "StaticIssuer",
    "StorageError",
    "StreamConfig",
    "StreamEvent",
    "StreamManager",
    "StreamMessage",
    "StreamNotLive",
    "StreamSettings",
    "TLSConfig",
    "Target",
    "Token",
    "TokenFeed",
    "TokenManager",
    "TokenManagerConfig",
    "TokenReceiver",
    "TokenReceiverConfig",
    "TokenRefused",
    "TokenSender",
    "TokenState",
    "TokenStorage",
    "TokenUnavailable",
    "Topic",
    "TransientError",
    "__version__",
    "notify_alert",
    "notify_exposure_change",
    "notify_lp_status_change",
    "notify_routing_decision",
    "use_publisher",
]

_HOME = {
    "keepline.brokers.base": (
        "IntentKind",
        "OrderIntent",
    ),
    "keepline.brokers.orders.gateway": ("OrderGateway",),
    "keepline.brokers.orders.outcome": (
        "OrderOutcome",
        "OutcomeState",
    ),
    "keepline.brokers.projectx.client": ("ProjectXClient",),
    "keepline.brokers.projectx.stream": ("ProjectXStream",),
    "keepline.brokers.projectx.trading": ("ProjectXTrading",),
    "keepline.brokers.schwab.client": ("SchwabClient",),
    "keepline.brokers.schwab.stream": ("SchwabStream",),
    "keepline.brokers.schwab.trading": ("SchwabTrading",),
    "keepline.credentials.issuer": (
        "AuthService",
        "OAuth2Issuer",
        "ProjectXIssuer",
        "SchwabIssuer",
        "StaticIssuer",
    ),
    "keepline.credentials.lifecycle": ("TokenManagerConfig", "TokenState"),
    "keepline.credentials.manager": ("TokenManager",),
    "keepline.credentials.schwab_file": ("SchwabTokenFile",),
    "keepline.credentials.storage": ("TokenStorage",),
    "keepline.credentials.token": ("Token",),
    "keepline.desk.notify": (
        "notify_alert",
        "notify_exposure_change",
        "notify_lp_status_change",
        "notify_routing_decision",
        "use_publisher",
    ),
    "keepline.errors": (
        "APIError",
        "CircuitOpen",
        "Closed",
        "ConfigError",
        "CredentialError",
        "KeeplineError",
        "OutcomeUnknown",
        "PermanentError",
        "ProtocolError",
        "QueueFull",
        "RateLimited",
        "Refused",
        "SignInRequired",
        "StorageError",
        "StreamNotLive",
        "TokenRefused",
        "TokenUnavailable",
        "TransientError",
    ),
    "keepline.hub.publisher": ("HubPublisher",),
    "keepline.hub.server": ("AnalyticsHub",),
    "keepline.model": (
        "Account",
        "Bar",
        "DepthLevel",
        "DepthUpdate",
        "Fill",
        "Instrument",
        "MarketTrade",
        "Order",
        "OrderStatus",
        "OrderType",
        "Position",
        "Quote",
        "Side",
    ),
    "keepline.relay.address": ("TLSConfig",),
    "keepline.relay.feed": ("TokenFeed",),
    "keepline.relay.receiver": ("TokenReceiver", "TokenReceiverConfig"),
    "keepline.relay.sender": ("DeliveryReport", "Target", "TokenSender"),
    "keepline.resilience.breaker": ("CircuitBreaker",),
    "keepline.resilience.circuit": ("CircuitState",),
    "keepline.resilience.handler": ("ErrorHandler",),
    "keepline.resilience.limiter": ("RateLimiter",),
    "keepline.resilience.pipeline": ("Pipeline",),
    "keepline.resilience.retry": ("RetryPolicy",),
    "keepline.stream.connection": ("SignalRConnection",),
    "keepline.stream.events": ("ConnectionState", "EventKind", "StreamEvent", "StreamMessage"),
    "keepline.stream.health": ("HealthStatus",),
    "keepline.stream.manager": ("EventRouter", "StreamManager"),
    "keepline.stream.port": ("Topic",),
    "keepline.stream.settings": ("StreamSettings",),
    "keepline.stream.signalr_config": ("StreamConfig",),
    "keepline.stream.signalr_manager": ("SignalRConnectionManager",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value  # the next use finds it without a call
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
