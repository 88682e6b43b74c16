"""What a call of a hub method is answered when it does not fit, in the words of the real server.

Invariants: names of methods have no case; a call that does not fit ends nothing but itself.

Source: measured at an ASP.NET Core 9.0 server without detailed errors.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Method", "checked", "failed", "methods", "stream_failed", "unknown"]


@dataclass(frozen=True, slots=True)
class Method:
    """A method of a hub.

    Attributes:
        name: as it is written.
        parameters: the type of each argument; `object` takes anything.
        streaming: it answers with a stream.
        uploads: streams that it takes.
        beside: calls after it do not wait until it is done, as the hub otherwise has them do.
    """

    name: str
    parameters: tuple[type, ...] = ()
    streaming: bool = False
    uploads: int = 0
    beside: bool = False


def methods(found: Iterable[Method]) -> Mapping[str, Method]:
    """A hub's methods by lower-case name."""
    return {method.name.lower(): method for method in found}


def checked(
    table: Mapping[str, Method],
    target: str,
    arguments: Sequence[Any],
    *,
    streaming: bool,
    uploads: int,
) -> Method | str:
    """The method that a call means, or the error that answers it."""
    method = table.get(target.lower())
    if method is None:
        return f"{unknown(target)} HubException: Method does not exist."
    if method.streaming and not streaming:
        return (
            f"The client attempted to invoke the streaming '{target}' method with a non-streaming"
            " invocation."
        )
    if streaming and not method.streaming:
        return (
            f"The client attempted to invoke the non-streaming '{target}' method with a streaming"
            " invocation."
        )
    fits = len(arguments) == len(method.parameters) and uploads == method.uploads
    if not fits or not all(map(_is, arguments, method.parameters)):
        return unknown(target)
    return method


def unknown(target: str) -> str:
    """The answer to arguments of a wrong number or type."""
    return f"Failed to invoke '{target}' due to an error on the server."


def failed(target: str, words: str | None) -> str:
    """The answer of a method that failed: with words when it meant to (a HubException)."""
    said = "" if words is None else f" HubException: {words}"
    return f"An unexpected error occurred invoking '{target}' on the server.{said}"


def stream_failed(words: str | None) -> str:
    """The end of a stream whose method failed."""
    said = "" if words is None else f" HubException: {words}"
    return f"An error occurred on the server while streaming results.{said}"


def _is(argument: object, wanted: type) -> bool:
    if wanted is object:
        return True
    if wanted is float:
        return isinstance(argument, int | float) and not isinstance(argument, bool)
    return isinstance(argument, wanted) and (wanted is bool or not isinstance(argument, bool))
