"""What a hub's error texts mean: a stock server says little, and two of its sentences are easily mixed up.

Invariant: the server's own words stay, a hint is added behind them. Source: measured on ASP.NET Core 9.0.7 with
default options, where the names of methods are compared without regard to case.
"""

import re
from typing import Final

__all__ = ["explain"]

_HINTS: Final = tuple(
    (re.compile(pattern, re.DOTALL), hint)
    for pattern, hint in (
        (
            r"HubException: Method does not exist\.\s*$",
            "the server has no method of this name; check its spelling and the endpoint",
        ),
        (
            r"^Failed to invoke '[^']*' because user is unauthorized",
            "the access token may not call this method",
        ),
        (
            r"^Failed to invoke '[^']*' due to an error on the server\.\s*$",
            "the method exists; the server says this when the number or the types of the arguments are wrong",
        ),
        (
            r"^An unexpected error occurred invoking '[^']*' on the server\.\s*$",
            "the method was called and failed; the server keeps the details in its own log",
        ),
        (
            r"attempted to invoke the streaming '[^']*' method with a non-streaming invocation",
            "call it with stream() instead of invoke()",
        ),
        (
            r"attempted to invoke the non-streaming '[^']*' method with a streaming invocation",
            "call it with invoke() instead of stream()",
        ),
        (
            r"^Connection closed with an error\.\s*$",
            "the server could not read a message (malformed, or above its limit of 32 KiB), or missed our pings",
        ),
        (
            r"^Handshake was canceled\.\s*$",
            "the handshake did not reach the server in time",
        ),
    )
)


def explain(error_text: str) -> str:
    """A hub's error text with a hint behind it when it has a known meaning, else unchanged."""
    for pattern, hint in _HINTS:
        if pattern.search(error_text):
            return f"{error_text.rstrip()} ({hint})"
    return error_text
