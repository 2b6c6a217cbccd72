"""Ids name their kind and sort by the time of their making."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.clock import now
from app.core.ids import first_id_at, is_id, new_id

MILLISECOND = timedelta(milliseconds=1)
MOMENTS = st.timedeltas(timedelta(0), timedelta(days=365 * 8000)).map(
    lambda since: datetime(1970, 1, 1, tzinfo=UTC) + since
)


def test_ids_of_one_process_are_distinct_and_in_order():
    made = [new_id("evt") for _ in range(20_000)]
    assert made == sorted(set(made))


def test_ids_of_many_threads_are_distinct():
    made: list[str] = []

    def make() -> None:
        made.extend([new_id("evt") for _ in range(2000)])

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 16_000


def test_an_id_lies_between_the_bounds_of_its_millisecond():
    before = now()
    made = new_id("att")
    after = now()
    assert first_id_at("att", before) <= made < first_id_at("att", after + MILLISECOND)


@settings(deadline=None)
@given(MOMENTS)
def test_bounds_are_ids_and_exact_to_the_millisecond(moment):
    moment = moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    bound = first_id_at("evt", moment)
    assert is_id(bound, "evt")
    assert bound == first_id_at("evt", moment + timedelta(microseconds=999))
    assert bound < first_id_at("evt", moment + MILLISECOND)


def test_times_out_of_range_have_the_bound_next_to_them():
    assert first_id_at("evt", datetime(1, 1, 1, tzinfo=UTC)) == first_id_at(
        "evt", datetime(1970, 1, 1, tzinfo=UTC)
    )
    assert first_id_at("evt", datetime(9999, 12, 31, tzinfo=UTC)) > new_id("evt")


def test_only_well_formed_ids_of_the_kind_are_ids():
    made = new_id("evt")
    assert is_id(made, "evt")
    for text in (
        *("", "evt", "evt_", made[4:], f"ep_{made[4:]}", made.upper(), made + "0", made[:-1], f" {made}"),
        *(f"{made}\n", "evt_" + "8" + made[5:], made[:-1] + "u", "evt_" + "é" * 26),
    ):
        assert not is_id(text, "evt"), text


@settings(deadline=None)
@given(st.text())
def test_no_text_breaks_the_check(text):
    assert is_id(text, "evt") is False
    assert is_id(f"evt_{text}", "evt") in {True, False}


@pytest.mark.parametrize("prefix", ["ws", "key", "ep", "evt", "dlv", "att"])
def test_every_prefix_of_the_contract_can_be_used(prefix):
    assert new_id(prefix).startswith(f"{prefix}_")
    assert len(new_id(prefix)) == len(prefix) + 27
