"""Programs that we did not write: each is skipped by name when it is absent, and listed at the end of the run."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

# The person's home before a test gets its own: npm keeps its downloads there.
REAL_HOME = Path(os.environ.get("HOME", "/"))


@pytest.fixture
def need() -> Callable[..., dict[str, str]]:
    """Call it with program names: the path of each by name, or the test is skipped with the absent one's name."""

    def find(*tools: str) -> dict[str, str]:
        found = {}
        for tool in tools:
            path = shutil.which(tool)
            if path is None:
                pytest.skip(f"peer tool absent: {tool}")
            found[tool] = path
        return found

    return find


@pytest.fixture(autouse=True)
def _npm_keeps_its_cache(monkeypatch: pytest.MonkeyPatch, clean_environment: Path) -> None:
    """A test's empty home must not make npm download everything again."""
    if "npm_config_cache" not in os.environ:
        monkeypatch.setenv("npm_config_cache", str(REAL_HOME / ".npm"))
