"""What a `[stream.NAME]` has wrong that its broker's own rules can tell without asking anybody."""

from keepline.brokers.projectx.stream_topics import contract_ids
from keepline.brokers.schwab.streamer_topics import service_of_quote, topic_of
from keepline.config import Settings
from keepline.errors import ConfigError

__all__ = ["check_stream"]


def check_stream(settings: Settings, name: str) -> None:
    """Look at each symbol.

    Raises:
        ConfigError: names the key.
    """
    table = settings.stream[name]
    try:
        if settings.brokers[table.broker].broker == "projectx":
            contract_ids(table.symbols)
        else:
            for symbol in table.symbols:
                topic_of(service_of_quote(symbol), symbol)
    except ConfigError as error:
        where = f"stream.{name}.symbols"
        raise ConfigError(str(error.args[0]), key=where, file=settings.file) from None
