from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import trustme

from keepline.config import Settings
from keepline.credentials.issuer import StaticIssuer
from keepline.credentials.oauth_issuer import OAuth2Issuer, SchwabIssuer
from keepline.credentials.projectx_issuer import ProjectXIssuer
from keepline.credentials.schwab_file import SchwabTokenFile
from keepline.credentials.storage import TokenStorage
from keepline.daemon.compose import (
    check_settings,
    history_of,
    issuer_of,
    lease_of,
    manager_of,
    sender_of,
    store_of,
    target_address,
)
from keepline.errors import ConfigError, StorageError

Configure = Callable[..., Settings]

OAUTH = '[credentials.x]\nissuer = "oauth2"\ntoken_url = "https://a.example/t"\nclient_id = "c"\n'


def private(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o600)


def refusal(settings: Settings) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        check_settings(settings)
    return caught.value


def test_right_settings_pass(configure: Configure) -> None:
    check_settings(
        configure('[relay.m]\ncredential = "schwab"\ntargets = ["bot:a", "/tmp/x.sock"]')
    )


def test_schwab_is_read_from_its_two_files(configure: Configure, clean_environment: Path) -> None:
    settings = configure()
    issuer, store = issuer_of(settings, "schwab"), store_of(settings, "schwab")
    assert isinstance(issuer, SchwabIssuer)
    assert isinstance(store, SchwabTokenFile)
    assert store.path == clean_environment / "tokens.json"
    lease = lease_of(store)
    assert lease is not None
    assert lease.path == clean_environment / "tokens.json.lock"
    assert history_of(settings, "schwab").path == clean_environment / "data/schwab.history"


def test_a_missing_app_file_is_named(configure: Configure, clean_environment: Path) -> None:
    settings = configure()
    (clean_environment / "app.yaml").unlink()
    assert "app.yaml: this file is missing; it holds app_key and app_secret" in str(
        refusal(settings)
    )


@pytest.mark.parametrize("key", ["app_key", "app_secret"])
def test_an_app_file_without_a_key_names_it(
    configure: Configure, clean_environment: Path, key: str
) -> None:
    settings = configure()
    lines = (clean_environment / "app.yaml").read_text().splitlines()
    private(clean_environment / "app.yaml", "\n".join(x for x in lines if not x.startswith(key)))
    assert f"app.yaml [{key}]: this key is missing" in str(refusal(settings))


def test_a_key_file_that_others_can_read_is_refused(
    configure: Configure, clean_environment: Path
) -> None:
    settings = configure(schwab='storage = "encrypted"')
    (clean_environment / "key").chmod(0o644)
    with pytest.raises(StorageError, match="chmod 600"):
        check_settings(settings)


def test_the_encrypted_store_uses_the_settings_key(configure: Configure) -> None:
    settings = configure(schwab='storage = "encrypted"')
    store = store_of(settings, "schwab")
    assert isinstance(store, TokenStorage)
    assert store.path == settings.base / "data/schwab.enc"


def test_memory_needs_no_lease(configure: Configure) -> None:
    store = store_of(configure(schwab='storage = "memory"'), "schwab")
    assert store.path is None
    assert lease_of(store) is None


def test_a_policy_of_the_settings_reaches_the_manager(configure: Configure) -> None:
    settings = configure(schwab="max_queue_depth = 7\nrefresh_buffer_seconds = 1")
    manager = manager_of(settings, "schwab")
    assert manager._config.max_queue_depth == 7
    assert manager._config.refresh_buffer_seconds == 1.0
    assert manager.name == "schwab"


def test_projectx_needs_its_key(configure: Configure, clean_environment: Path) -> None:
    section = '[credentials.top]\nissuer = "projectx"\nusername = "ann"\n'
    error = refusal(configure(section))
    assert error.key == "credentials.top.api_key"
    assert "PROJECT_X_API_KEY or api_key_file" in str(error)
    private(clean_environment / "pk", "k")
    settings = configure(section + 'api_key_file = "pk"\n')
    assert isinstance(issuer_of(settings, "top"), ProjectXIssuer)


def test_oauth_needs_a_secret_unless_it_is_a_public_client(
    configure: Configure, clean_environment: Path
) -> None:
    assert refusal(configure(OAUTH)).key == "credentials.x.client_secret"
    settings = configure(OAUTH + 'client_auth = "none"\nrefresh_lifetime_seconds = 60\n')
    issuer = issuer_of(settings, "x")
    assert isinstance(issuer, OAuth2Issuer)
    assert issuer.app.refresh_lifetime == timedelta(seconds=60)


def test_a_token_url_over_plain_http_is_refused_with_its_key(configure: Configure) -> None:
    text = OAUTH.replace("https", "http") + 'client_auth = "none"\n'
    error = refusal(configure(text))
    assert error.key == "credentials.x.token_url"
    assert error.file is not None


def test_a_static_token_comes_from_its_file(configure: Configure, clean_environment: Path) -> None:
    private(clean_environment / "st", "abc")
    settings = configure('[credentials.s]\nissuer = "static"\naccess_token_file = "st"\n')
    assert isinstance(issuer_of(settings, "s"), StaticIssuer)
    assert store_of(settings, "s").path is None


def test_a_credential_that_is_not_configured_is_named(configure: Configure) -> None:
    with pytest.raises(ConfigError, match=r"no \[credentials.nobody\]; there is schwab"):
        store_of(configure(), "nobody")


def relay(targets: str) -> str:
    return f'[relay.m]\ncredential = "schwab"\ntargets = [{targets}]\n'


@pytest.mark.parametrize(
    ("targets", "key", "words"),
    [
        ('"nonsense"', "relay.m.targets[0].address", "is no address; write unix:/path"),
        ('"/ok.sock", "tcp://h"', "relay.m.targets[1].address", "needs a host and a port"),
        (f'"/{"x" * 120}"', "relay.m.targets[0].address", "a Unix socket's path at most 107"),
        ('"tcp://192.0.2.1:1"', "relay.m.targets[0].address", "allow_plain_tcp_beyond_loopback"),
        ('"tls://h:1"', "relay.m.targets[0].tls_certificate", "needs certificates"),
        ('"bot:../x"', "relay.m.targets[0].address", "is no name"),
        (
            '{address = "tls://h:1", tls_ca = "c"}',
            "relay.m.targets[0].tls_certificate",
            "belong together",
        ),
        (
            '{address = "tls://h:1", tls_ca = "c", tls_key = "c", tls_certificate = "c"}',
            "relay.m.targets[0].tls_ca",
            "No such file",
        ),
        ('"~nobody-of-this-name/x"', "relay.m.targets[0].address", "no home directory"),
        (
            '{address = "/a", shared_secret_file = "none"}',
            "relay.m.targets[0].shared_secret_file",
            "does not exist; write the secret there",
        ),
    ],
)
def test_a_bad_target_is_named_with_its_place(
    configure: Configure, targets: str, key: str, words: str
) -> None:
    error = refusal(configure(relay(targets)))
    assert error.key == key
    assert words in str(error)
    assert error.file is not None


def test_a_target_has_all_that_its_table_says(
    configure: Configure, clean_environment: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(clean_environment / "ca.pem"))
    leaf = authority.issue_cert("localhost")
    leaf.private_key_pem.write_to_path(str(clean_environment / "key.pem"))
    leaf.cert_chain_pems[0].write_to_path(str(clean_environment / "cert.pem"))
    private(clean_environment / "secret", "a shared secret of size")
    settings = configure(
        relay(
            '{address = "tls://localhost:9", name = "n", send_refresh_token = true, allowed_uids = [7],'
            ' shared_secret_file = "secret", tls_ca = "ca.pem", tls_key = "key.pem", tls_certificate = "cert.pem"}'
        )
        + "attempts = 5\ntimeout = 2.5\n"
    )
    sender = sender_of(settings, "m")
    (target,) = sender.targets
    assert (sender.attempts, sender.timeout, sender.credential) == (5, 2.5, "schwab")
    assert (target.name, target.send_refresh_token, target.allowed_uids) == ("n", True, (7,))
    assert target.shared_secret == "a shared secret of size"
    assert target.tls is not None


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("bot:alpha", "{run}/bots/alpha.sock"),
        ("/a/b.sock", "/a/b.sock"),
        ("unix:/a/b.sock", "/a/b.sock"),
        ("unix:run/b.sock", "/base/run/b.sock"),
        ("./b.sock", "/base/b.sock"),
        ("tcp://127.0.0.1:9", "tcp://127.0.0.1:9"),
    ],
)
def test_addresses_become_what_the_relay_takes(
    clean_environment: Path, text: str, address: str
) -> None:
    expected = address.format(run=clean_environment / "run")
    assert target_address(text, Path("/base")) == expected


@pytest.mark.parametrize(
    ("metrics", "words"),
    [("0.0.0.0:1", "not loopback"), ("9464", "is no host:port"), ("127.0.0.1:x", "no host:port")],
)
def test_numbers_stay_on_loopback(configure: Configure, metrics: str, words: str) -> None:
    error = refusal(configure(metrics=metrics))
    assert error.key == "telemetry.metrics"
    assert words in str(error)
