"""The files for operation: a unit that systemd accepts, rules and panels over metrics that exist."""

import configparser
import importlib
import json
import pkgutil
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import keepline
from keepline.credentials.keys import CREDENTIAL_NAME
from keepline.daemon.credential import CredentialPart
from keepline.telemetry import REGISTRY, Histogram

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd" / "keepline.service"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = DEPLOY / "grafana" / "keepline.json"


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=True, interpolation=None)
    parser.optionxform = str
    parser.read(UNIT)
    return parser


def rules() -> list[dict]:
    return [
        rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
    ]


def panels() -> list[dict]:
    return [
        panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"
    ]


def series_names() -> set[str]:
    """What a Prometheus server can ask for, given all rooms."""
    for module in pkgutil.walk_packages(keepline.__path__, "keepline."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    names = set()
    for metric in REGISTRY:
        parts = ("_bucket", "_sum", "_count") if isinstance(metric, Histogram) else ("",)
        names |= {metric.name + part for part in parts}
    return names


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Type", "notify"),
        ("User", "keepline"),
        ("Restart", "always"),
        ("RestartSec", "60"),
        ("RestartPreventExitStatus", "2 3"),
        ("WatchdogSec", "60"),
        ("RuntimeDirectory", "keepline"),
        ("RuntimeDirectoryMode", "0700"),
        ("StateDirectory", "keepline"),
        ("ProtectSystem", "strict"),
        ("NoNewPrivileges", "yes"),
        ("UMask", "0077"),
        ("LimitCORE", "0"),
    ],
)
def test_the_unit_says(key: str, value: str) -> None:
    assert unit()["Service"][key] == value


def test_the_unit_hands_over_the_storage_key_under_the_name_that_is_looked_up() -> None:
    name, _, path = unit()["Service"]["LoadCredential"].partition(":")
    assert name == CREDENTIAL_NAME
    assert path.startswith("/etc/keepline/")


def test_the_unit_gives_a_refresh_in_flight_time_to_be_saved() -> None:
    part = CredentialPart(
        "x",
        lambda: pytest.fail("not asked for"),
        refresh_timeout=keepline.TokenManagerConfig().refresh_timeout_seconds,
    )
    assert int(unit()["Service"]["TimeoutStopSec"]) > part.drain_seconds


def test_the_unit_starts_again_for_as_long_as_it_takes() -> None:
    assert unit()["Unit"]["StartLimitIntervalSec"] == "0"


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    copy = tmp_path / "keepline.service"
    copy.write_text(
        re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(), flags=re.MULTILINE)
    )
    if analyze is None:  # its keys are checked above by parsing
        assert set(unit().sections()) == {"Unit", "Service", "Install"}
        return
    done = subprocess.run([analyze, "verify", str(copy)], capture_output=True, text=True)
    complaints = [line for line in done.stderr.splitlines() if "keepline" in line]
    assert (done.returncode, complaints) == (0, [])


def test_each_alert_asks_for_metrics_that_exist() -> None:
    known = series_names() | {"up"}
    for rule in rules():
        asked = set(re.findall(r"\bkeepline_\w+", rule["expr"]))
        assert asked <= known, rule["alert"]
        assert asked or "up{" in rule["expr"]


def test_each_alert_says_how_bad_what_and_what_to_do() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["expr"].count("(") == rule["expr"].count(")")


def test_the_promised_alerts_are_there() -> None:
    by_name = {rule["alert"]: rule["expr"] for rule in rules()}
    assert len(by_name) == len(rules())
    assert "/ 6, 7200" in by_name["KeeplineRenewalOverdue"]
    assert "> 1800" in by_name["KeeplineTokenOlderThan30Minutes"]
    assert by_name["KeeplineRefreshErrors"].endswith("> 0.001")
    assert by_name["KeeplineDeliveryErrors"].endswith("> 0.001")
    assert by_name["KeeplineCallbackSlow"].endswith("> 0.001")
    assert "signin_deadline" in by_name["KeeplineSignInDue"]
    assert "unsaved_generation" in by_name["KeeplineTokenUnsaved"]


def test_labels_in_rules_are_labels_of_the_metrics() -> None:
    labels = {metric.name: set(metric.labels) for metric in REGISTRY}
    for expression in [rule["expr"] for rule in rules()] + [
        t["expr"] for p in panels() for t in p["targets"]
    ]:
        for name, matchers in re.findall(r"(keepline_\w+)\{([^}]*)\}", expression):
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            used = set(re.findall(r"(\w+)\s*[=!]", matchers)) - {"instance", "job", "le"}
            assert used <= labels[base], expression


def test_each_panel_asks_for_metrics_that_exist() -> None:
    known = series_names()
    assert len(panels()) >= 8
    for panel in panels():
        for target in panel["targets"]:
            asked = set(re.findall(r"\bkeepline_\w+", target["expr"]))
            assert asked, panel["title"]
            assert asked <= known, panel["title"]


def test_the_dashboard_can_be_imported_anywhere() -> None:
    board = json.loads(DASHBOARD.read_text())
    assert board["__inputs"][0]["name"] == "DS_PROMETHEUS"
    assert {panel["datasource"]["uid"] for panel in panels()} == {"${DS_PROMETHEUS}"}
    assert "id" not in board
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places)


def test_rotation_moves_the_file_and_leaves_the_rest_to_keepline() -> None:
    text = (DEPLOY / "logrotate" / "keepline").read_text()
    assert "nocreate" in text
    assert re.search(r"^\s*copytruncate", text, re.MULTILINE) is None
    logs = unit()["Service"]["LogsDirectory"]
    assert f"/var/log/{logs}/*.log" in text
