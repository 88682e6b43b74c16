"""Which close code says a refusal to a browser, which cannot see an HTTP status.

Invariants: a decider; a code's range agrees with the refusal: what may be tried again gets one that says come back.
"""

from keepline.hub.closecodes import CloseCode, comes_back
from keepline.hub.refusals import Refusal, RefusalCode

__all__ = ["close_code"]

_CODES = {
    RefusalCode.NO_TOKEN: CloseCode.NOT_SIGNED_IN,
    RefusalCode.EXPIRED: CloseCode.TOKEN_EXPIRED,
    RefusalCode.NOT_YET_VALID: CloseCode.TOKEN_EXPIRED,
    RefusalCode.REVOKED: CloseCode.REVOKED,
    RefusalCode.OTHER_USER: CloseCode.OTHER_USER,
    RefusalCode.FORBIDDEN: CloseCode.FORBIDDEN,
    RefusalCode.BAD_CHANNEL: CloseCode.FORBIDDEN,
    RefusalCode.BAD_ORIGIN: CloseCode.FORBIDDEN,
    RefusalCode.BAD_HOST: CloseCode.FORBIDDEN,
}


def close_code(refusal: Refusal) -> CloseCode:
    """The code with which a refused connection is closed."""
    otherwise = CloseCode.FAILED if refusal.come_back else CloseCode.BAD_TOKEN
    code = _CODES.get(refusal.code, otherwise)
    assert comes_back(code) == refusal.come_back, f"{code} says otherwise than {refusal.code}"
    return code
