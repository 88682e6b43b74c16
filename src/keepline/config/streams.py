"""`[stream.NAME]`: what only several keys together, or the broker, can get wrong."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from keepline.config.reader import Reader, listed, nearest
from keepline.config.sections import BrokerSettings, StreamTable

__all__ = ["RECORD_FIELDS", "stream_table"]

RECORD_FIELDS = ("stream", "time")
"""What may stand in braces in the name of a recording."""


def stream_table(
    reader: Reader, name: str, table: dict[str, Any], brokers: Mapping[str, BrokerSettings]
) -> StreamTable:
    """The section, checked against its broker.

    Raises:
        ConfigError: names the key, the file and what would be right.
    """
    path = f"stream.{name}"
    wanted = table.get("broker", name)
    if str(wanted) not in brokers:
        there = f"there is {listed(brokers)}" if brokers else "none is configured"
        advice = nearest(str(wanted), brokers) or there
        raise reader.error(f"no [brokers.{wanted}]; {advice}", f"{path}.broker", wanted)
    made = reader.section(StreamTable, path, {"broker": str(wanted), **table})
    if not made.accounts and not made.symbols:
        raise reader.error("missing; name accounts, symbols or both", f"{path}.symbols")
    _check_broker(reader, path, made, brokers[made.broker].broker)
    _check_url(reader, path, made)
    _check_record(reader, path, made)
    for key in ("stale_after", "heartbeat"):
        if getattr(made, key) == float("inf"):
            raise reader.error("expected a number of seconds that ends, not inf", f"{path}.{key}")
    return made


def _check_broker(reader: Reader, path: str, made: StreamTable, broker: str) -> None:
    if broker != "schwab":
        return
    if "trades" in made.events:
        message = "Schwab's streamer has no single trades; it has quotes and depth"
        raise reader.error(message, f"{path}.events")
    if made.encoding != "json":
        raise reader.error("Schwab's streamer speaks json only", f"{path}.encoding")
    if made.url is not None:
        message = "Schwab itself says where its streamer is; leave this key out"
        raise reader.error(message, f"{path}.url")


def _check_url(reader: Reader, path: str, made: StreamTable) -> None:
    parts = urlsplit(made.url or "https://none")
    if parts.scheme not in ("http", "https", "ws", "wss") or not parts.hostname:
        message = f"expected an address such as https://rtc.topstepx.com, not {made.url!r}"
        raise reader.error(message, f"{path}.url")


def _check_record(reader: Reader, path: str, made: StreamTable) -> None:
    if made.record is None:
        return
    key, name = f"{path}.record", made.record.name
    example = "data/recordings/{stream}-{time}.klrec.gz"
    try:
        filled = name.format(**dict.fromkeys(RECORD_FIELDS, "x"))
    except (KeyError, IndexError, ValueError):
        fields = listed(f"{{{field}}}" for field in RECORD_FIELDS)
        message = f"only {fields} may stand in braces, for example {example}"
        raise reader.error(message, key) from None
    if "{time}" not in name or not filled:
        message = f"each start writes a new file, so its name needs {{time}}, for example {example}"
        raise reader.error(message, key)
