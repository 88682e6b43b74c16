"""GatewayLogout: once is answered by coming back, twice in short time is a conflict."""

from keepline.brokers.projectx.displaced import CALM_SECONDS, Displaced
from keepline.stream.redial import Fault, fault_of_lost


def test_the_first_time_one_comes_back_at_once() -> None:
    lost = Displaced().logout(0.0)
    assert fault_of_lost(lost.reason) is Fault.CLOSED
    assert "another session" in str(lost.error)


def test_a_second_time_soon_after_is_a_conflict_that_is_not_fought_over() -> None:
    displaced = Displaced()
    displaced.logout(0.0)
    lost = displaced.logout(CALM_SECONDS)
    assert (fault_of_lost(lost.reason), lost.allow_reconnect) == (Fault.OCCUPIED, True)
    assert "stop one of the two" in str(lost.error)
    assert displaced.times == 2


def test_after_a_calm_time_it_is_the_first_time_again() -> None:
    displaced = Displaced()
    displaced.logout(0.0)
    assert displaced.logout(CALM_SECONDS + 1).reason == "close"
