"""`keepline send` and `keepline listen`."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keepline.cli.options import JsonOption
from keepline.cli.output import say, show_fields, show_json, write

if TYPE_CHECKING:
    from keepline.credentials.token import Token
    from keepline.relay.sender import Delivery

__all__ = ["add_to"]

SecretFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The shared secret, mode 600; else KEEPLINE_SHARED_SECRET."),
]
TlsCertificate = Annotated[Path | None, typer.Option(metavar="FILE", help="Our certificate, PEM.")]
TlsKey = Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key, PEM.")]
TlsCa = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Who signed the other end's certificate, PEM.")
]

AllowPlainTcp = Annotated[
    bool,
    typer.Option(
        "--allow-plain-tcp-beyond-loopback", help="Anybody on the way can read the tokens."
    ),
]


def add_to(app: typer.Typer) -> None:
    app.command()(send)
    app.command()(listen)


def send(
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            metavar="ADDRESS",
            help="bot:NAME, unix:/path, tcp://host:port, tls://host:port; several are possible. Else bot:default.",
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="One token per line, mode 600.")
    ] = None,
    generate: Annotated[bool, typer.Option("--generate", help="Make tokens up.")] = False,
    interval: Annotated[
        float, typer.Option(min=0.0, metavar="SECONDS", help="Between two tokens.")
    ] = 0.0,
    count: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="End after so many. With --generate 1, with --interval no end."
        ),
    ] = 0,
    credential: Annotated[
        str, typer.Option(metavar="NAME", help="Whose token it is said to be.")
    ] = "default",
    attempts: Annotated[int, typer.Option(min=1, metavar="N", help="Per token.")] = 1,
    timeout: Annotated[
        float, typer.Option(min=0.001, metavar="SECONDS", help="Per attempt.")
    ] = 5.0,
    secret_file: SecretFile = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    tls_ca: TlsCa = None,
    allow_plain_tcp: AllowPlainTcp = False,
    json: JsonOption = False,
) -> int:
    """Push tokens to bots, from standard input: echo test_abc123 | keepline send."""
    from keepline.cli.exits import exit_code_of_outcomes, exit_code_of_signal
    from keepline.daemon import pushing
    from keepline.daemon.run import until_signal
    from keepline.errors import ConfigError
    from keepline.relay.sender import TokenSender

    if file is not None and generate:
        raise ConfigError("--file and --generate exclude each other")
    targets = pushing.make_targets(
        to or [],
        secret=pushing.read_shared_secret(secret_file),
        tls=pushing.tls_files(tls_certificate, tls_key, tls_ca),
        plain=allow_plain_tcp,
    )
    sender = TokenSender(targets, attempts=attempts, timeout=timeout, credential=credential)
    if generate:
        lines, count = pushing.generated(), count or (0 if interval else 1)
    else:
        lines = pushing.file_lines(file) if file is not None else pushing.stream_lines()
    statistics = pushing.PushStatistics()

    def told(token: "Token", delivery: "Delivery") -> None:
        reason = f": {delivery.reason}" if delivery.reason else ""
        say(f"{token.fingerprint} {delivery.outcome} to {delivery.target}{reason}")

    work = pushing.push(
        lines, sender, interval=interval, count=count, statistics=statistics, told=told
    )
    try:
        number = asyncio.run(until_signal(work))
    finally:
        if json:
            show_json(statistics.as_dict())
        elif statistics.tokens:
            show_fields(statistics.in_words())
    if number is not None:
        return exit_code_of_signal(number)
    if not statistics.tokens:
        raise ConfigError("nothing to send; give a token on standard input: echo … | keepline send")
    return exit_code_of_outcomes(statistics.outcomes)


def listen(
    name: Annotated[
        str, typer.Option(metavar="NAME", help="The bot's name; its socket is bot:NAME.")
    ] = "default",
    at: Annotated[
        str, typer.Option("--at", metavar="ADDRESS", help="Another address to listen at.")
    ] = "",
    seconds: Annotated[
        float, typer.Option("--for", min=0.0, metavar="SECONDS", help="End after this time.")
    ] = 0.0,
    count: Annotated[int, typer.Option(min=0, metavar="N", help="End after so many tokens.")] = 0,
    secret_file: SecretFile = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    tls_ca: TlsCa = None,
    allow_unauthenticated_loopback: Annotated[
        bool,
        typer.Option(
            "--allow-unauthenticated-loopback",
            help="Plain TCP on loopback for every program of this machine.",
        ),
    ] = False,
    allow_plain_tcp: AllowPlainTcp = False,
    json: JsonOption = False,
) -> int:
    """Receive tokens as a bot does and show that they came, never what they are."""
    from keepline.cli.exits import DONE, exit_code_of_signal
    from keepline.daemon import pushing
    from keepline.daemon.run import until_signal

    receiver = pushing.make_receiver(
        at,
        name,
        secret=pushing.read_shared_secret(secret_file),
        tls=pushing.tls_files(tls_certificate, tls_key, tls_ca),
        anybody=allow_unauthenticated_loopback,
        plain=allow_plain_tcp,
    )

    def told(token: "Token") -> None:
        facts = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "bot": name,
            "credential": str(token.extra.get("credential", "")),
            "generation": token.generation,
            "fingerprint": token.fingerprint,
            "expires_at": token.expires_at.isoformat(timespec="seconds"),
        }
        if json:
            show_json(facts, lines=True)
        else:
            known = (f"{key}={value}" for key, value in facts.items() if value)
            write("Token received " + " ".join(known))

    work = pushing.listen(
        receiver,
        seconds=seconds,
        count=count,
        listening=lambda address: say(f"listening at {address}"),
        told=told,
    )
    try:
        number = asyncio.run(until_signal(work))
    finally:
        stats = receiver.get_stats()
        if stats["address"]:  # else it never listened, and the error says all
            show_json(stats, lines=True) if json else show_fields(pushing.in_words(stats))
    return DONE if number is None else exit_code_of_signal(number)
