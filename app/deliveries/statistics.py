"""How an endpoint's attempts went and how long they took, counted while they are recorded.

Durations are counted in bins that grow by a tenth, as DDSketch has it (https://arxiv.org/abs/1908.10693): whatever a
bin holds is at most 5 % away from the bin's value, and so is a quantile that is found among bins.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select, text

from app.core.clock import now
from app.core.errors import invalid_field
from app.core.partitions import day_of
from app.core.unit_of_work import UnitOfWork
from app.deliveries.models import AttemptCount, AttemptStatus, Trigger
from app.deliveries.work import NewAttempt
from app.endpoints import service as endpoints
from app.endpoints.models import Endpoint

MAX_ERROR = 0.05
MAX_BUCKETS = 1000
# How long a bucket is, and how far back it goes unless the question says so.
BUCKETS = {"hour": (1, timedelta(days=1)), "day": (24, timedelta(days=30))}

_GROWTH = (1 + MAX_ERROR) / (1 - MAX_ERROR)
_BINS_PER_E = 1 / math.log(_GROWTH)
_HOUR_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Summary:
    """How attempts went: counts, the share of successes, and quantiles of the duration; None where there was none."""

    success: int
    failed: int
    success_rate: float | None
    p50_ms: int | None
    p95_ms: int | None
    start: datetime | None = None  # of the bucket; None for the total


@dataclass(frozen=True, slots=True)
class Statistics:
    """A summary per bucket, oldest first and none left out, and that of all."""

    buckets: list[Summary]
    total: Summary


def bin_of(duration_ms: int) -> int:
    """Give the bin of a duration. Those below a millisecond have a bin of their own, -1."""
    return math.ceil(math.log(duration_ms) * _BINS_PER_E) if duration_ms > 0 else -1


def value_of(duration_bin: int) -> float:
    """Give the duration that stands for a bin, in milliseconds."""
    return 0.0 if duration_bin < 0 else 2 * _GROWTH**duration_bin / (_GROWTH + 1)


def quantile(counts: Mapping[int, int], share: float) -> float | None:
    """Give the least duration that at least this share of all is not above, to `MAX_ERROR`; None of none."""
    rank = math.ceil(share * sum(counts.values()))
    for duration_bin in sorted(counts):
        rank -= counts[duration_bin]
        if rank <= 0:
            return value_of(duration_bin)
    return None


def count(uow: UnitOfWork, attempts: Iterable[NewAttempt]) -> None:
    """Add attempts to the counts, in one statement; tests are not counted.

    The caller holds the queues of their endpoints: nobody else changes the same rows meanwhile.
    """
    counts = Counter(
        (
            int(attempt.started_at.timestamp()) // _HOUR_SECONDS,
            attempt.endpoint_id,
            attempt.status,
            bin_of(attempt.duration_ms),
        )
        for attempt in attempts
        if attempt.trigger != Trigger.TEST
    )
    if not counts:
        return
    rows = [(*key, number) for key, number in counts.items()]
    if uow.is_sqlite:
        uow.connection.execute(_ADD_SQLITE, [dict(zip(_COLUMNS, row, strict=True)) for row in rows])
    else:
        columns = zip(*rows, strict=True)
        uow.connection.execute(
            _ADD, {name: ",".join(map(str, column)) for name, column in zip(_COLUMNS, columns, strict=True)}
        )


def get(
    uow: UnitOfWork, *, workspace_id: str, endpoint_id: str, bucket: str, since: datetime | None = None
) -> Statistics:
    """Summarise an endpoint's attempts per bucket, from the one that `since` falls into until now.

    Raises `NotFound`, and `Invalid` for too many buckets.
    """
    endpoints.find(uow, workspace_id=workspace_id, endpoint_id=endpoint_id)
    hours, back = BUCKETS[bucket]
    moment = now()
    kept = day_of(moment - timedelta(days=uow.resources.settings.retention_days))
    last = hour_of(moment) // hours
    first = hour_of(max(since or moment - back, kept)) // hours
    if last - first >= MAX_BUCKETS:
        raise invalid_field("/since", "too_many", f"That makes more than {MAX_BUCKETS} buckets.")
    # Per bucket, status and bin.
    found: dict[int, dict[str, Counter[int]]] = {}
    for number, status, duration_bin, total in _list(uow, workspace_id, endpoint_id, first, hours):
        found.setdefault(number, {}).setdefault(status, Counter())[duration_bin] = total
    buckets = [_summary([found.get(number, {})], _start(number, hours)) for number in range(first, last + 1)]
    return Statistics(buckets, _summary(found.values()))


def hour_of(moment: datetime) -> int:
    """Give the number of a moment's hour, since 1970."""
    return int(moment.timestamp()) // _HOUR_SECONDS


def _start(bucket: int, hours: int) -> datetime:
    return datetime.fromtimestamp(bucket * hours * _HOUR_SECONDS, UTC)


def _list(
    uow: UnitOfWork, workspace_id: str, endpoint_id: str, first: int, hours: int
) -> Sequence[tuple[int, str, int, int]]:
    bucket = (AttemptCount.hour // hours).label("bucket")
    query = (
        select(bucket, AttemptCount.status, AttemptCount.duration_bin, func.sum(AttemptCount.count))
        .join(Endpoint, Endpoint.id == AttemptCount.endpoint_id)
        .where(
            Endpoint.workspace_id == workspace_id,
            AttemptCount.endpoint_id == endpoint_id,
            AttemptCount.hour >= first * hours,
        )
        .group_by(bucket, AttemptCount.status, AttemptCount.duration_bin)
    )
    return [(row[0], row[1], row[2], int(row[3])) for row in uow.connection.execute(query)]


def _summary(parts: Iterable[Mapping[str, Counter[int]]], start: datetime | None = None) -> Summary:
    durations: Counter[int] = Counter()
    success = failed = 0
    for part in parts:
        for status, counts in part.items():
            durations.update(counts)
            if status == AttemptStatus.SUCCESS:
                success += counts.total()
            else:
                failed += counts.total()
    attempts = success + failed
    return Summary(
        success=success,
        failed=failed,
        success_rate=success / attempts if attempts else None,
        p50_ms=_rounded(quantile(durations, 0.5)),
        p95_ms=_rounded(quantile(durations, 0.95)),
        start=start,
    )


def _rounded(value: float | None) -> int | None:
    return None if value is None else round(value)


_COLUMNS = ("hour", "endpoint_id", "status", "duration_bin", "count")
_ON_CONFLICT = """
ON CONFLICT (hour, endpoint_id, status, duration_bin)
DO UPDATE SET count = attempt_counts.count + excluded.count
"""
# In the order of the index, which costs a quarter less.
_ADD = text(f"""
INSERT INTO attempt_counts ({", ".join(_COLUMNS)})
SELECT * FROM unnest(
    string_to_array(:hour, ',')::int[], string_to_array(:endpoint_id, ','), string_to_array(:status, ','),
    string_to_array(:duration_bin, ',')::smallint[], string_to_array(:count, ',')::int[]
) AS rows ({", ".join(_COLUMNS)})
ORDER BY hour, endpoint_id COLLATE "C", status, duration_bin
{_ON_CONFLICT}
""")
_ADD_SQLITE = text(f"""
INSERT INTO attempt_counts ({", ".join(_COLUMNS)}) VALUES (:hour, :endpoint_id, :status, :duration_bin, :count)
{_ON_CONFLICT}
""")
