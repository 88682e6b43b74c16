"""The sandbox's ProjectX part: a login key buys a session token, validate prolongs it, logout ends it.

Invariants: every answer is HTTP 200 with `success` inside, as the real gateway's; a session token is a signed JWT whose
`exp` tells the truth; what was ended or has expired opens nothing.
"""

import hmac
from collections import Counter
from collections.abc import Mapping

__all__ = ["Sessions"]

LOGIN_ERRORS = {3: "Invalid credentials."}
VALIDATE_INVALID, VALIDATE_UNKNOWN, VALIDATE_EXPIRED = 1, 2, 3


class Sessions:
    """Session tokens by their text; `now` is the venue's time in epoch seconds.

    Args:
        username: the one user.
        api_key: that user's login key.
        lifetime: seconds that a session token lives.
        secret: signs the tokens.
        counts: where logins, validations and logouts are counted.
    """

    def __init__(
        self, *, username: str, api_key: str, lifetime: float, secret: bytes, counts: Counter[str]
    ) -> None:
        self._login = f"{username}\n{api_key}".encode()
        self._username = username
        self._lifetime = lifetime
        self._secret = secret
        self._counts = counts
        self._expiry: dict[str, float] = {}
        self._made = 0

    def login_key(self, body: Mapping[str, object], *, now: float) -> dict[str, object]:
        """`POST /api/Auth/loginKey`."""
        presented = f"{body.get('userName', '')}\n{body.get('apiKey', '')}".encode()
        if not hmac.compare_digest(presented, self._login):
            self._counts["refused"] += 1
            return {"token": None, **_failure(3, LOGIN_ERRORS[3])}
        self._counts["logins"] += 1
        return {"token": self._new(now), **_SUCCESS}

    def validate(self, bearer: str, *, now: float) -> dict[str, object]:
        """`POST /api/Auth/validate`: a newer token for one that still lives."""
        if self.accepts(bearer, now=now):
            self._counts["validations"] += 1
            return {**_SUCCESS, "newToken": self._new(now)}
        self._counts["refused"] += 1
        code = VALIDATE_EXPIRED if bearer in self._expiry else VALIDATE_UNKNOWN
        return {**_failure(code if bearer else VALIDATE_INVALID, None), "newToken": None}

    def logout(self, bearer: str, *, now: float) -> dict[str, object]:
        """`POST /api/Auth/logout`."""
        if not self.accepts(bearer, now=now):
            return _failure(VALIDATE_INVALID, None)
        self._counts["logouts"] += 1
        del self._expiry[bearer]
        return dict(_SUCCESS)

    def accepts(self, bearer: str, *, now: float) -> bool:
        """Whether the token opens the API."""
        return now < self._expiry.get(bearer, float("-inf"))

    def forget(self) -> None:
        """End every session."""
        self._expiry.clear()

    def _new(self, now: float) -> str:
        import jwt

        self._made += 1
        claims = {
            "sub": self._username,
            "sid": self._made,
            "iat": int(now),
            "exp": int(now + self._lifetime),
        }
        token = jwt.encode(claims, self._secret, algorithm="HS256")
        # an expired one is remembered for another life: validate tells it from an unknown one
        self._expiry = {t: e for t, e in self._expiry.items() if e + self._lifetime > now}
        self._expiry[token] = now + self._lifetime
        return token


_SUCCESS: Mapping[str, object] = {"success": True, "errorCode": 0, "errorMessage": None}


def _failure(code: int, message: str | None) -> dict[str, object]:
    return {"success": False, "errorCode": code, "errorMessage": message}
