"""The health of endpoints, as pure rules: docs/decisions/0007 says how they fit together.

An endpoint is failing after ten failures in a row, until its next success. Where its policy says `hold`, it is held
meanwhile: its deliveries wait, and one at a time goes out as a probe, at longer and longer intervals. One that has been
failing for days without a success is disabled.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from app.core.clock import format_time
from app.endpoints.models import EndpointStatus
from app.endpoints.policy import HOLD, Policy

FAILING_AFTER = 10  # failures in a row
FIRST_PROBE_SECONDS = 10
MAX_PROBE_SECONDS = 600
# A held queue is looked at with each probe, so that nothing is held for longer than three days.
HELD_AT_MOST = timedelta(days=3) - timedelta(seconds=MAX_PROBE_SECONDS)

# They tell nothing of an endpoint: our proxy opened no way to it, or there was no body to send.
NOT_THEIRS = frozenset({"proxy_failed", "template_failed"})

_ACTIVE, _FAILING, _DISABLED = EndpointStatus.ACTIVE, EndpointStatus.FAILING, EndpointStatus.DISABLED


@dataclass(frozen=True, slots=True)
class Health:
    """What an endpoint's attempts have shown; kept in its queue's row."""

    failures_in_row: int = 0
    failing_since: datetime | None = None  # when it was found failing, and not when its failures began
    probe_at: datetime | None = None  # when the next probe may go out; None: it is not held
    failed_probes: int = 0


class Tally:
    """What a batch of recorded attempts says of an endpoint. Not a dataclass: counting is on the hot path."""

    __slots__ = ("failures", "last_attempt_at", "last_failure", "last_success_at", "probed")

    def __init__(self, started_at: datetime) -> None:
        self.last_attempt_at = started_at
        self.last_success_at: datetime | None = None
        self.failures = 0  # since the last success in the batch
        self.last_failure = ""  # as a phrase
        self.probed = False

    def succeed(self, started_at: datetime) -> None:
        """Count a success."""
        self.failures = 0
        self.last_attempt_at = max(self.last_attempt_at, started_at)
        if self.last_success_at is None or started_at > self.last_success_at:
            self.last_success_at = started_at

    def fail(self, started_at: datetime, error_code: str, status_code: int | None) -> None:
        """Count a failure, if it is theirs."""
        self.last_attempt_at = max(self.last_attempt_at, started_at)
        if error_code not in NOT_THEIRS:
            self.failures += 1
            self.last_failure = f"status {status_code}" if error_code == "http_status" else error_code


def may_change(health: Health, tally: Tally, moment: datetime, disable_after: timedelta | None) -> bool:
    """Tell whether `judge` could find a change: for a healthy endpoint there is nothing more to be asked."""
    if health.probe_at is not None:
        return True
    if health.failing_since is None:
        return health.failures_in_row >= FAILING_AFTER and tally.failures > 0
    return tally.last_success_at is not None or _is_over(health.failing_since, moment, disable_after)


def judge(
    health: Health,
    status: EndpointStatus,
    *,
    policy: Policy,
    tally: Tally,
    moment: datetime,
    disable_after: timedelta | None,
) -> tuple[Health, EndpointStatus]:
    """Give what a batch makes of an endpoint whose failures in a row are counted already.

    A state that people gave it stays. A probe that failed by our own fault is made again after the same time.
    """
    if health.failures_in_row < FAILING_AFTER:
        return Health(health.failures_in_row), _ACTIVE if status is _FAILING else status
    begins = health.failing_since is None or tally.last_success_at is not None
    if begins and tally.failures:
        health = replace(health, failing_since=moment, failed_probes=0, probe_at=moment + probe_delay(0))
    elif tally.probed:
        failed_probes = health.failed_probes + bool(tally.failures)
        health = replace(health, failed_probes=failed_probes, probe_at=moment + probe_delay(failed_probes))
    if policy.when_failing != HOLD:
        health = replace(health, failed_probes=0, probe_at=None)
    if health.failing_since is not None:
        if status is _ACTIVE:
            status = _FAILING
        if status is _FAILING and _is_over(health.failing_since, moment, disable_after):
            status = _DISABLED
    return health, status


def probe_delay(failed_probes: int) -> timedelta:
    """Give the time from the failure of a probe, or the beginning of the hold, to the next probe."""
    doubled = FIRST_PROBE_SECONDS * 2 ** min(failed_probes, 16)  # the power is bounded, for the sum is anyway
    return timedelta(seconds=min(doubled, MAX_PROBE_SECONDS))


def reason(health: Health, status: EndpointStatus, tally: Tally) -> str | None:
    """Give the sentence that says why an endpoint has the status; None where nothing needs to be said."""
    if status is _FAILING:
        last = f", the last with {tally.last_failure}" if tally.last_failure else ""
        return f"{health.failures_in_row} attempts in a row have failed{last}."
    if status is _DISABLED and health.failing_since is not None:
        return (
            f"No attempt has succeeded since {format_time(health.failing_since)} at the latest. "
            "Its deliveries wait until it is resumed."
        )
    return None


def _is_over(failing_since: datetime, moment: datetime, disable_after: timedelta | None) -> bool:
    return disable_after is not None and moment - failing_since >= disable_after
