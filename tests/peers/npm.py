"""Packages of npm for peers under Node: installed once for each lock file, into pytest's cache."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["install"]

REAL_ENVIRONMENT = dict(os.environ)  # npm is configured in the person's home, not in a test's


def install(cache: pytest.Cache, npm: str, source: Path) -> Path:
    """A directory with the files of `source` and what their lock file names, whoever comes first installs it."""
    lock = (source / "package-lock.json").read_bytes()
    folder = Path(cache.mkdir(f"{source.name}-{hashlib.sha256(lock).hexdigest()[:12]}"))
    with (folder / "lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        for file in ("package.json", "package-lock.json", *(p.name for p in source.glob("*.mjs"))):
            shutil.copyfile(source / file, folder / file)
        if not (folder / "installed").exists():
            command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
            done = subprocess.run(
                command,
                cwd=folder,
                env=REAL_ENVIRONMENT,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            (folder / "installed").touch()
    return folder
