"""`keepline run`, `status`, `doctor`."""

import asyncio
from typing import Annotated

import typer

from keepline.cli.options import ConfigOption, JsonOption
from keepline.cli.output import say, show_daemon, show_json, write

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    app.command()(run)
    app.command()(status)
    app.command()(doctor)


def run(
    config: ConfigOption = None,
    once: Annotated[
        bool, typer.Option("--once", help="Renew what is due, deliver the tokens, and end.")
    ] = False,
    log_level: Annotated[
        str | None, typer.Option(help="DEBUG, INFO, WARNING or ERROR.", metavar="LEVEL")
    ] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json.", metavar="FORMAT")] = None,
    metrics: Annotated[
        str | None, typer.Option(help='Loopback host:port, "" for off.', metavar="ADDRESS")
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(help="Processes beside the hub's own that fan out (Linux).", metavar="N"),
    ] = None,
) -> int:
    """Keep the tokens alive and hand each new one to the bots, until a signal."""
    from keepline.cli.service import serve

    flags = {
        "telemetry.log_level": log_level,
        "telemetry.log_format": log_format,
        "telemetry.metrics": metrics,
        "hub.workers": workers,
    }
    return serve(config, once, flags)


def status(config: ConfigOption = None, json: JsonOption = False) -> int:
    """Say how the daemon and its credentials are: exit 0 all well, 1 not ready, 3 a sign-in is needed, 4 no daemon."""
    from keepline.cli.exits import exit_code_of_status
    from keepline.daemon.ask import whole_status

    told = asyncio.run(whole_status(config))
    if json:
        show_json(told)
    else:
        show_daemon(told)
    return exit_code_of_status(told)


def doctor(config: ConfigOption = None, json: JsonOption = False) -> int:
    """Look at everything that keeps tokens from flowing; exit 1 when something does."""
    from dataclasses import asdict

    from keepline.daemon.doctor import Finding, examine

    async def look() -> list[Finding]:
        found = []
        async for finding in examine(config):
            found.append(finding)
            if not json:
                write(f"{finding.level:<4}  {finding.subject}: {finding.words}")
                if finding.remedy:
                    write(f"      -> {finding.remedy}")
        return found

    found = asyncio.run(look())
    failed = sum(finding.level == "fail" for finding in found)
    if json:
        show_json({"ok": not failed, "findings": [asdict(finding) for finding in found]})
    elif failed:
        say(f"keepline: {failed} {'thing' if failed == 1 else 'things'} to correct")
    return 1 if failed else 0
