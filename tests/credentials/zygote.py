"""A process that has imported everything and forks token managers on demand: fifty bots in a second, or one that dies.

It reads one JSON command per line from standard input and answers with JSON lines: first the pids, then one line per
child that lived to its end, then `{"done": …}` with the signals that ended the others.
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from keepline.credentials.issuer import SchwabIssuer
from keepline.credentials.lease import FileLease
from keepline.credentials.manager import TokenManager
from keepline.credentials.storage import TokenStorage
from keepline.errors import KeeplineError

write = os.write


def say(**line: Any) -> None:
    """One line in one write: lines of many children do not mix."""
    write(1, json.dumps(line).encode() + b"\n")


class Steps:
    """Counts the steps of a renewal and dies before the one that was asked for, as by kill -9."""

    def __init__(self, kill_at: int | None) -> None:
        self.seen: list[str] = []
        self._kill_at = kill_at

    def step(self, name: str) -> None:
        if len(self.seen) == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()
        self.seen.append(name)

    def watch(self, issuer: Any, store: Any, lease: Any) -> None:
        for name in (
            "write",
            "pwrite",
            "fsync",
            "replace",
            "unlink",
            "posix_fallocate",
            "ftruncate",
        ):
            setattr(os, name, self._before(name, getattr(os, name)))
        store.prepare = self._before("prepare", store.prepare)
        refresh, enter = issuer.refresh, lease.__aenter__

        async def asked(token: Any) -> Any:
            self.step("request")
            answer = await refresh(token)
            self.step("answer")
            return answer

        class Lease:
            async def __aenter__(_) -> None:
                self.step("lease")
                await enter()
                self.step("leased")

            async def __aexit__(_, *problem: Any) -> None:
                self.step("release")
                await lease.__aexit__(*problem)

        issuer.refresh = asked
        self.lease = Lease()

    def _before(self, name: str, function: Any) -> Any:
        def stepped(*args: Any, **kwargs: Any) -> Any:
            self.step(name)
            return function(*args, **kwargs)

        return stepped


async def bot(command: dict[str, Any], store: TokenStorage) -> None:
    """Get a token as a bot does, and say which."""
    issuer = SchwabIssuer("sandbox-key", "sandbox-secret", base_url=command["url"])
    lease: Any = FileLease(Path(command["path"] + ".lock"))
    steps = Steps(command.get("kill_at"))
    if command.get("steps"):
        steps.watch(issuer, store, lease)
        lease = steps.lease
    config = {"name": "schwab", "queue_timeout_seconds": 50, "refresh_timeout_seconds": 50}
    manager = TokenManager(config, issuer, storage=store, lease=lease)
    manager.subscribe(lambda _: steps.step("publish"))
    try:
        async with manager:
            token = await (manager.force_refresh if command.get("force") else manager.get)()
            say(token=token.fingerprint, generation=token.generation)
    except KeeplineError as error:
        say(error=f"{type(error).__name__}: {error}")
    finally:
        await issuer.close()
    say(steps=steps.seen)


def child(command: dict[str, Any], store: TokenStorage) -> None:
    status = 1
    try:
        asyncio.run(bot(command, store))
        status = 0
    finally:
        os._exit(status)


def opened(command: dict[str, Any]) -> TokenStorage:
    return TokenStorage(
        command["path"],
        key=command["key"],
        credential="schwab",
        fallback_directory=Path(command["fallback"]),
    )


def main() -> None:
    stores: dict[str, TokenStorage] = {}
    for line in sys.stdin:
        command = json.loads(line)
        store = stores.setdefault(command["path"], opened(command))
        store.load()  # the key is derived once; the children inherit it
        pids = []
        for _ in range(command.get("count", 1)):
            pid = os.fork()
            if pid == 0:
                child(command, store)
            pids.append(pid)
        say(pids=pids)
        ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        say(done=ends)


if __name__ == "__main__":
    main()
