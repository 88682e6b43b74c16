"""The commented first configuration, and settings back as TOML.

Invariant: the template is itself a valid configuration, and nothing that exists is ever overwritten.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keepline.errors import ConfigError

__all__ = ["TEMPLATE", "as_toml", "write_template"]

TEMPLATE = """\
# Keepline. Every key can also be given by the environment: KEEPLINE__SECTION__KEY=value.
# Relative paths start in the directory of this file. Secrets never stand here, only the files that hold them.
# `keepline config check` says what is wrong; `keepline config show` prints every key with its value in effect.

# --- credentials: whose tokens are kept alive --------------------------------------------------------------------

[credentials.schwab]
issuer = "schwab"
token_file = "configs/schwab_tokens.json"           # the file of schwab-py; `keepline login schwab` makes it
app_config = "configs/schwab_app_config.yaml"       # app_key and app_secret, mode 600
# redirect_uri = "https://127.0.0.1:8182"           # as registered with your app
# storage = "encrypted"                             # data/schwab.enc instead of the JSON file

# [credentials.topstep]
# issuer = "projectx"
# username = "your-user-name"                       # or PROJECT_X_USERNAME
# api_key_file = "configs/topstep_api_key"          # mode 600; or PROJECT_X_API_KEY

# --- relay: which bots get each new token ------------------------------------------------------------------------

[relay.bots]
credential = "schwab"
targets = [
    "bot:default",                                  # what TokenReceiver() and `keepline listen` listen at
    # "/tmp/my-old-bot.sock",                       # or unix:/path, tcp://host:port, tls://host:port
    # { address = "tcp://127.0.0.1:9999", name = "scalper", shared_secret_file = "configs/scalper_secret" },
]

# --- brokers: accounts that orders, bars and the command line reach ------------------------------------------------

[brokers.schwab]                                    # with the tokens of [credentials.schwab]
# account = "12345678"                              # not needed when there is only one

# [brokers.topstep]
# account = "50KTC-V2-1234-12345678"                # or PROJECT_X_ACCOUNT_NAME
# journal = "data/topstep.orders"                   # order intents; one owner at a time

# [limits.history]                                  # a broker's own rule of this name is replaced
# limit = 50
# window_seconds = 30

# --- streams: quotes and accounts, kept and checked under `keepline run`, or watched by `keepline stream` -----------

# [stream.schwab]                                   # of [brokers.schwab]
# accounts = ["12345678"]
# symbols = ["AAPL", "/ESZ26"]

# [stream.topstep]
# symbols = ["MNQ"]                                 # the active contract
# events = ["quotes", "trades", "depth"]
# record = "data/recordings/{stream}-{time}.klrec.gz"

# --- log and numbers ---------------------------------------------------------------------------------------------

[telemetry]
log_level = "INFO"
# log_file = "logs/keepline.log"
# log_format = "json"
# metrics = ""                                      # off; else /metrics and /readyz at 127.0.0.1:9464
"""
"""What `keepline init` writes."""


def write_template(file: Path) -> None:
    """Write the template to a new file.

    Raises:
        ConfigError: something is there already, or the place cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        with os.fdopen(os.open(file, flags, 0o644), "w", encoding="utf-8") as stream:
            stream.write(TEMPLATE)
    except FileExistsError:
        raise ConfigError(
            "exists already and is left as it is; name another file", file=file
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", file=file) from None


def as_toml(shown: Mapping[str, Any]) -> str:
    """What `Settings.show` gave, as TOML; keys without a value are comments."""
    lines = [f"# {shown['file'] or 'no file: defaults and environment'}"]
    for section in ("credentials", "relay", "brokers", "limits", "stream"):
        for name, table in shown[section].items():
            lines += ["", f"[{section}.{_key(name)}]", *_lines(table)]
    for section in ("telemetry", "sandbox", "hub"):
        lines += ["", f"[{section}]", *_lines(shown[section])]
    return "\n".join(lines)


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [
        f"# {key} =" if value is None else f"{key} = {_value(value)}"
        for key, value in table.items()
    ]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{k} = {_value(v)}" for k, v in value.items() if v is not None)
        return f"{{ {pairs} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False)  # a JSON scalar is a TOML scalar


def _key(name: str) -> str:
    return json.dumps(name) if "." in name else name
