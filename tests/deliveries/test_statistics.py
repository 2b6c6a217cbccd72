"""Quantiles that are found among bins are those of the durations themselves, to 5 %."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.deliveries.statistics import MAX_ERROR, bin_of, quantile, value_of

LONGEST_MS = 24 * 60 * 60 * 1000
durations = st.integers(0, LONGEST_MS)
shares = st.floats(0, 1, exclude_min=True)


def true_quantile(values: list[int], share: float) -> int:
    """Give the least of the values that at least this share of all is not above (the nearest rank)."""
    return next(
        value for value in sorted(values) if sum(each <= value for each in values) >= share * len(values)
    )


@given(durations)
def test_a_bin_s_value_is_at_most_5_percent_away_from_what_it_holds(duration):
    assert abs(value_of(bin_of(duration)) - duration) <= MAX_ERROR * duration * (1 + 1e-9)


def test_bins_are_as_wide_as_that_allows():
    """A narrower bin would be a row more for nothing."""
    bins = {bin_of(duration) for duration in range(1, LONGEST_MS, 997)}
    assert len(bins) <= math.log(LONGEST_MS) / math.log((1 + MAX_ERROR) / (1 - MAX_ERROR)) + 2


@given(durations, durations)
def test_a_longer_duration_is_never_in_a_lower_bin(one, other):
    assert (bin_of(one) <= bin_of(other)) == (one <= other) or bin_of(one) == bin_of(other)


@given(durations)
def test_bins_fit_their_column(duration):
    assert -(2**15) <= bin_of(duration) < 2**15


@given(st.lists(durations, min_size=1, max_size=200), shares)
def test_a_quantile_is_the_true_one_to_5_percent(values, share):
    found = quantile(Counter(map(bin_of, values)), share)
    wanted = true_quantile(values, share)
    assert found is not None
    assert abs(found - wanted) <= MAX_ERROR * wanted * (1 + 1e-9)


@given(st.lists(durations, min_size=1, max_size=50), st.integers(1, 5))
def test_a_quantile_does_not_depend_on_how_the_counts_came_together(values, parts):
    added: Counter[int] = Counter()
    for part in range(parts):
        added.update(Counter(map(bin_of, values[part::parts])))
    assert quantile(added, 0.95) == quantile(Counter(map(bin_of, values)), 0.95)


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_of_no_attempt_there_is_no_quantile(share):
    assert quantile({}, share) is None
