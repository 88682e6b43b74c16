"""What a `[stream.NAME]` has wrong that its broker's own rules can tell without asking anybody."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from keepline.brokers.projectx.stream_topics import contract_ids
from keepline.brokers.schwab.streamer_topics import service_of_quote, topic_of
from keepline.config import Settings
from keepline.errors import ConfigError
from keepline.stream.transport import require_privacy

__all__ = ["check_stream"]


def check_stream(settings: Settings, name: str) -> None:
    """Look at each symbol, and at the address.

    Raises:
        ConfigError: names the key.
    """
    table = settings.stream[name]
    with _keyed(settings, f"stream.{name}.symbols"):
        if settings.brokers[table.broker].broker == "projectx":
            contract_ids(table.symbols)
        else:
            for symbol in table.symbols:
                topic_of(service_of_quote(symbol), symbol)
    with _keyed(settings, f"stream.{name}.url"):
        if table.url is not None:
            require_privacy(re.sub("^ws", "http", table.url, flags=re.IGNORECASE))


@contextmanager
def _keyed(settings: Settings, key: str) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error.args[0]), key=key, file=settings.file) from None
