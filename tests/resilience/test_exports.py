"""The room's names: all there, each loaded when it is first used."""

import subprocess
import sys

import pytest

import keepline.resilience


@pytest.mark.parametrize("name", keepline.resilience.__all__)
def test_every_public_name_is_found(name: str) -> None:
    assert getattr(keepline.resilience, name).__name__ == name
    assert name in dir(keepline.resilience)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        keepline.resilience.Nothing  # noqa: B018


def test_the_pipeline_loads_neither_aiohttp_nor_an_exporter() -> None:
    program = (
        "import sys; from keepline.resilience import Pipeline, ErrorHandler;"
        "print(sorted({'aiohttp', 'prometheus_client', 'structlog', 'cryptography'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_backoff_alone_loads_no_pipeline() -> None:
    program = (
        "import sys; from keepline.resilience import Backoff;"
        "print([name for name in sys.modules if name.startswith('keepline.resilience.')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['keepline.resilience.backoff']"
