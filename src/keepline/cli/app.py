"""All verbs in one application."""

import typer

from keepline.cli import bars, config, demo, hub, orders, relay, run, sandbox, stream, token, user

__all__ = ["app"]

app = typer.Typer(
    name="keepline",
    help="Keeps trading bots logged in: owns the broker's tokens, renews them in time, hands them to every bot.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help, and no rich in the daemon's memory
    pretty_exceptions_enable=False,  # they print local variables, which hold secrets
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verbs in (demo, run, config, token, relay, bars, orders, stream, hub, user, sandbox):
    verbs.add_to(app)
