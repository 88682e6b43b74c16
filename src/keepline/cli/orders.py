"""`keepline orders list|reconcile`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keepline.cli.options import ConfigOption, JsonOption
from keepline.cli.output import say, show_json, show_table

if TYPE_CHECKING:
    from keepline.brokers.orders.records import Record

__all__ = ["add_to"]

group = typer.Typer(
    help="Look at order intents, and settle those that a person must decide.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

BrokerName = Annotated[
    str,
    typer.Argument(
        metavar="[NAME]",
        help="The broker, as in [brokers.NAME]; not needed when there is only one.",
        show_default=False,
    ),
]


def add_to(app: typer.Typer) -> None:
    app.add_typer(group, name="orders")


@group.command("list")
def list_(
    name: BrokerName = "",
    all_: Annotated[
        bool, typer.Option("--all", help="Also those whose outcome is known, newest last.")
    ] = False,
    last: Annotated[int, typer.Option(min=1, metavar="N", help="At most so many.")] = 50,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> int:
    """Order intents whose outcome is not known, from the journal. Exit 1 when a person must decide."""
    from keepline.brokers.orders.store import read_journal
    from keepline.cli.exits import DONE, FAILED

    path = _journal(config, name)
    records = read_journal(path, all_records=all_, limit=last)
    told = [_told(record) for record in records]
    if json:
        show_json(told)
    elif not told:
        say(f"nothing is unresolved in {path}")
    else:
        columns = ("prepared", "id", "kind", "what", "state", "order", "how", "reason")
        show_table(columns, [[_cell(column, line) for column in columns] for line in told])
    return FAILED if any(line["state"] == "ambiguous" for line in told) else DONE


@group.command()
def reconcile(
    intent: Annotated[
        str, typer.Argument(metavar="ID", help="The intent, as `orders list` names it.")
    ],
    name: Annotated[
        str,
        typer.Option(
            "--broker", metavar="NAME", help="As in [brokers.NAME]; not needed when there is one."
        ),
    ] = "",
    order: Annotated[
        str, typer.Option("--order", metavar="ORDER", help="It is this order of the broker.")
    ] = "",
    absent: Annotated[
        bool, typer.Option("--absent", help="The broker has no order of it.")
    ] = False,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Kept beside the decision.")] = "",
    config: ConfigOption = None,
) -> None:
    """Say what became of an intent; the program that owns the journal takes it up within seconds."""
    from keepline.brokers.orders.store import leave_decision
    from keepline.errors import ConfigError
    from keepline.files.ownership import owner_of

    if absent == bool(order):
        raise ConfigError("look it up at the broker, then say --order ORDER or --absent")
    path = _journal(config, name)
    leave_decision(path, intent, order or None, reason or "decided by keepline orders reconcile")
    decided = f"{intent}: {f'order {order}' if order else 'absent'}"
    owner = owner_of(path)
    if owner is None:
        say(f"{decided}; the next program that opens {path} takes it up")
    else:
        say(f"{decided}; process {owner} takes it up within seconds")


def _journal(config: Path | None, name: str) -> Path:
    from keepline.config import load
    from keepline.daemon.clients import broker_named

    settings = load(config)
    return settings.brokers[broker_named(settings, name)].journal


def _told(record: "Record") -> dict[str, Any]:
    intent = record.intent
    moments = ("prepared_at", "sent_at", "changed_at")
    return {
        "id": intent.id,
        "kind": intent.kind.value,
        "account": intent.account,
        "instrument": intent.instrument,
        "side": intent.side and intent.side.value,
        "quantity": _text(intent.quantity),
        "type": intent.type and intent.type.value,
        "limit_price": _text(intent.limit_price),
        "stop_price": _text(intent.stop_price),
        "target_order_id": intent.target_order_id or record.target,
        "depends_on": list(intent.depends_on),
        "state": record.state.value,
        "how": record.how.value,
        "order_id": record.order_id,
        "reason": record.reason,
    } | {name: _moment(getattr(record, name)) for name in moments}


def _cell(column: str, line: dict[str, Any]) -> Any:
    if column == "prepared":
        return line["prepared_at"][:19].replace("T", " ")
    if column == "order":
        return line["order_id"]
    if column == "what":
        names = (
            "side",
            "quantity",
            "instrument",
            "type",
            "limit_price",
            "stop_price",
            "target_order_id",
        )
        return " ".join(str(line[name]) for name in names if line[name])
    return line[column]


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _moment(value: Any) -> str | None:
    return None if value is None else value.isoformat(timespec="milliseconds")
