"""Every error that Keepline raises, in one tree.

    KeeplineError
    ├── ConfigError                     before anything starts: key, file, what was expected
    ├── CredentialError
    │   ├── SignInRequired              a person must act; names the credential and the command
    │   ├── TokenRefused                the issuer said no
    │   ├── TokenUnavailable            expired, and the issuer is out of reach just now
    │   └── StorageError                file mode, owner, wrong key, damaged file, disk full
    ├── APIError                        a broker call failed
    │   ├── TransientError              may work in a moment
    │   ├── PermanentError              will not work however often it is repeated
    │   └── OutcomeUnknown              a mutation without a trustworthy answer
    ├── ProtocolError                   the peer sent what it may not
    ├── Refused                         our own limits
    │   ├── CircuitOpen
    │   ├── RateLimited
    │   ├── QueueFull
    │   └── StreamNotLive
    └── Closed                          you closed it

Messages say what, where and what to do; they never hold a secret. `CancelledError` is not ours and is never swallowed.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

__all__ = [
    "APIError",
    "CircuitOpen",
    "Closed",
    "ConfigError",
    "CredentialError",
    "KeeplineError",
    "OutcomeUnknown",
    "PermanentError",
    "ProtocolError",
    "QueueFull",
    "RateLimited",
    "Refused",
    "SignInRequired",
    "StorageError",
    "StreamNotLive",
    "TokenRefused",
    "TokenUnavailable",
    "TransientError",
]


class KeeplineError(Exception):
    """The root: `except KeeplineError` catches everything of ours and nothing of others."""


class ConfigError(KeeplineError, ValueError):
    """A setting or an argument is wrong; nothing was started.

    Attributes:
        key: the path of the setting (`relay.main.targets[0]`) or the argument's name, "" when there is none.
        file: the file that holds it, None when it came from the environment or a caller.
    """

    def __init__(self, message: str, *, key: str = "", file: Path | str | None = None) -> None:
        super().__init__(message)
        self.key = key
        self.file = None if file is None else Path(file)

    def __str__(self) -> str:
        where = " ".join(
            part for part in (str(self.file or ""), self.key and f"[{self.key}]") if part
        )
        message = super().__str__()
        return f"{where}: {message}" if where else message


class CredentialError(KeeplineError):
    """A credential cannot serve.

    Attributes:
        credential: the credential's name, "" when not known at that place.
    """

    def __init__(self, message: str, *, credential: str = "") -> None:
        super().__init__(message)
        self.credential = credential


class SignInRequired(CredentialError):
    """A person must sign in; no retry will help.

    Attributes:
        command: what to run, for example `keepline login schwab`.
    """

    def __init__(self, message: str, *, credential: str = "", command: str = "") -> None:
        super().__init__(message, credential=credential)
        self.command = command or (
            f"keepline login {credential}" if credential else "keepline login"
        )

    def __str__(self) -> str:
        return f"{super().__str__()}; run: {self.command}"


class TokenRefused(CredentialError):
    """The issuer understood the request and said no.

    Attributes:
        code: the issuer's own code (`invalid_grant`, `loginKey 3 InvalidCredentials`), "" when it gave none.
        status: the HTTP status, None when there was none.
    """

    def __init__(
        self, message: str, *, code: str = "", status: int | None = None, credential: str = ""
    ) -> None:
        super().__init__(message, credential=credential)
        self.code = code
        self.status = status


class TokenUnavailable(CredentialError):
    """No valid token just now; it is being worked on, no person is needed.

    Attributes:
        retry_at: when the next attempt is due (aware UTC), None when one is under way.
        cause: the last failure, None when there was none yet.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_at: datetime | None = None,
        cause: BaseException | None = None,
        credential: str = "",
    ) -> None:
        super().__init__(message, credential=credential)
        self.retry_at = retry_at
        self.cause = cause


class StorageError(CredentialError, OSError):
    """A secret could not be read or saved safely: mode, owner, wrong key, damaged file, disk full.

    Attributes:
        path: the file, None for a store without one.
    """

    def __init__(
        self, message: str, *, path: Path | str | None = None, credential: str = ""
    ) -> None:
        CredentialError.__init__(self, message, credential=credential)
        self.path = None if path is None else Path(path)

    def __str__(self) -> str:
        message = str(self.args[0]) if self.args else ""
        return f"{self.path}: {message}" if self.path is not None else message


class APIError(KeeplineError):
    """A call to a broker failed.

    Attributes:
        category: `auth`, `client`, `server`, `network`, `timeout` or `rate_limit`.
        status: the HTTP status, None when no answer came.
        endpoint: method and path without the query, for example `POST /v1/oauth/token`.
        attempt: 1 for the first try.
        retry_after: seconds that the server asked us to wait, None when it did not say.
        sent: False only when the request provably never left: a repeat cannot double anything.
        code: the broker's own code and its name (`place 6 OrderPending`), "" when it gave none.
        request_id: by what name the broker's support finds the call, "" when it gave none.
        elapsed_seconds: from the start of the call to the failure, all attempts and waits included; None when unknown.
    """

    def __init__(
        self,
        message: str,
        *,
        category: str = "client",
        status: int | None = None,
        endpoint: str = "",
        attempt: int = 1,
        retry_after: float | None = None,
        sent: bool = True,
        code: str = "",
        request_id: str = "",
        elapsed_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.category = category
        self.status = status
        self.endpoint = endpoint
        self.attempt = attempt
        self.retry_after = retry_after
        self.sent = sent
        self.code = code
        self.request_id = request_id
        self.elapsed_seconds = elapsed_seconds

    def __str__(self) -> str:
        return f"{self.endpoint}: {super().__str__()}" if self.endpoint else super().__str__()


class TransientError(APIError):
    """The same call may work in a moment: 408 429 500 502 503 504, network, timeout."""


class PermanentError(APIError):
    """The same call will fail again: 400 401 403 404 405 409 422 and refusals of the broker."""


class OutcomeUnknown(APIError):
    """A mutation was sent and no trustworthy answer came: reconcile, never resend blindly."""


class ProtocolError(KeeplineError):
    """The peer sent what it may not."""


class Refused(KeeplineError):
    """Our own limits said no; nothing was sent.

    Attributes:
        retry_after: seconds until a new try makes sense, None when time alone does not help.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class CircuitOpen(Refused):
    """The breaker is open: the other side failed too often."""


class RateLimited(Refused):
    """The rate budget cannot serve this call before its deadline."""


class QueueFull(Refused):
    """A bounded queue is full: more callers wait than the configuration allows."""


class StreamNotLive(Refused):
    """A stream does not show the present: trading on it would be trading blind.

    Attributes:
        stream: its name, "" when not known at that place.
        reasons: in words what is wrong.
    """

    def __init__(
        self,
        message: str,
        *,
        stream: str = "",
        reasons: Sequence[str] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.stream = stream
        self.reasons = tuple(reasons)


class Closed(KeeplineError):
    """You closed it, and then used it."""
