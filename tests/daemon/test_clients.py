"""Claims about the clients that the settings describe."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.brokers.loopback import Reply, loopback, tokens
from tests.daemon.conftest import Source, aside, token

from keepline import config
from keepline.brokers.projectx.client import PROJECTX_LIMITS, ProjectXClient
from keepline.brokers.schwab.client import SCHWAB_LIMITS, SchwabClient
from keepline.config import OWN_LIMITS, Settings
from keepline.daemon.clients import account_of, broker_client, broker_named, limiter_of
from keepline.daemon.socket import LocalSocket
from keepline.errors import ConfigError
from keepline.relay.address import daemon_socket_path
from keepline.sandbox.server import SandboxServer

Load = Callable[..., Settings]


@pytest.fixture
def access(sandbox: SandboxServer) -> str:
    """An access token of the sandbox; another sign-in would end this one."""
    return sandbox.issue().access_token


@pytest.fixture
def load(clean_environment: Path, sandbox: SandboxServer, access: str) -> Load:
    """Settings with both brokers, tokens in memory."""

    def read(brokers: str = '[brokers.top]\n[brokers.schwab]\nbase_url = "URL"\n') -> Settings:
        file = clean_environment / "keepline.toml"
        text = (
            '[credentials.top]\nissuer = "projectx"\nusername = "sandbox"\nstorage = "memory"\nbase_url = "URL"\n'
            f'[credentials.schwab]\nissuer = "static"\nstorage = "memory"\n{brokers}'
        )
        file.write_text(text.replace("URL", sandbox.url))
        environ = {
            "PROJECT_X_API_KEY": "sandbox-api-key",
            "KEEPLINE__CREDENTIALS__SCHWAB__ACCESS_TOKEN": access,
        }
        return config.load(file, environ=environ)

    return aside(read)


async def test_without_a_daemon_tokens_come_from_the_issuer(
    load: Load, sandbox: SandboxServer
) -> None:
    settings = load()
    async with broker_client(settings, "top") as client:
        assert isinstance(client, ProjectXClient)
        assert (await client.account()).name == "SANDBOX-150K"
        assert await account_of(client, settings.brokers["top"]) == "1001"
    async with broker_client(settings, "schwab") as client:
        assert isinstance(client, SchwabClient)
        assert await account_of(client, settings.brokers["schwab"]) == "10000001"
    assert sandbox.stats()["logins"] == 1


async def test_a_running_daemon_stays_the_owner_of_its_tokens(
    load: Load, sandbox: SandboxServer, access: str
) -> None:
    source = Source(token(3, access))
    server = LocalSocket(Path(daemon_socket_path()), {"top": source}, lambda: {"credentials": {}})
    await server.start()
    try:
        settings = load()
        async with broker_client(settings, "top") as client:
            assert isinstance(client, ProjectXClient)
            await client.accounts()
        async with broker_client(settings, "schwab") as client:  # not the daemon's
            assert isinstance(client, SchwabClient)
            await client.account_numbers()
    finally:
        await server.stop()
    assert source.asked == [("get", None)]
    assert sandbox.stats()["logins"] == 0


async def test_an_account_is_named_by_the_settings(load: Load) -> None:
    settings = load(
        '[brokers.top]\naccount = "1002"\n[brokers.schwab]\naccount = "10000001"\nbase_url = "URL"\n'
        '[brokers.other]\nbroker = "schwab"\ncredential = "schwab"\naccount = "777"\nbase_url = "URL"\n'
    )
    async with broker_client(settings, "schwab") as client:
        assert await account_of(client, settings.brokers["schwab"]) == "10000001"
        with pytest.raises(ConfigError, match=r"no account …777; the token reaches …001"):
            await account_of(client, settings.brokers["other"])
    async with broker_client(settings, "top") as client:
        with pytest.raises(ConfigError, match="no account '1002'"):
            await account_of(client, settings.brokers["top"])


async def test_several_accounts_at_schwab_ask_for_a_name(load: Load) -> None:
    settings = load()
    rows = [{"accountNumber": f"{n}00", "hashValue": "H"} for n in (1, 2)]
    async with loopback() as venue:
        venue.on("/trader/v1/accounts/accountNumbers", Reply(rows), Reply([]))
        async with SchwabClient(tokens, base_url=venue.url) as client:
            for there in ("…100, …200", "none"):
                with pytest.raises(
                    ConfigError, match=f"which account\\? the token reaches {there}"
                ):
                    await account_of(client, settings.brokers["schwab"])


async def test_limits_of_the_configuration_lie_over_the_brokers_own(load: Load) -> None:
    settings = load(
        "[brokers.top]\n[brokers.schwab]\n"
        "[limits.history]\nlimit = 50\nwindow_seconds = 30\n"
        '[limits.quotes]\nlimit = 5\nwindow_seconds = 1\nendpoints = ["*/quotes"]\n'
    )
    top = limiter_of(settings, settings.brokers["top"])
    assert "quotes: 5 per 1 s; history: 50 per 30 s; general: 200 per 60 s" in repr(top)
    schwab = limiter_of(settings, settings.brokers["schwab"])
    assert "quotes: 5 per 1 s; schwab: 120 per 60 s" in repr(schwab)
    limits = schwab.get_stats()["limits"]
    assert set(limits) == {"quotes", "schwab"}
    async with broker_client(settings, "top") as client:
        assert re.search(r"limiter +<?.*history: 50 per 30 s", str(client))


def test_the_configuration_knows_the_rules_that_brokers_bring_along() -> None:
    assert {*PROJECTX_LIMITS, *SCHWAB_LIMITS} == set(OWN_LIMITS)


def test_a_broker_is_named_or_the_only_one(load: Load) -> None:
    assert broker_named(load("[brokers.top]\n")) == "top"
    settings = load()
    assert broker_named(settings, "schwab") == "schwab"
    for name, words in (
        ("", "which broker? name one of top, schwab"),
        ("x", "no [brokers.x]; there is top, schwab"),
    ):
        with pytest.raises(ConfigError) as caught:
            broker_named(settings, name)
        assert words in str(caught.value)
    with pytest.raises(ConfigError, match=r"no \[brokers\.NAME\] is configured"):
        broker_named(load(""))
