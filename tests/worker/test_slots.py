"""What the children of one worker share: no child takes what another one has."""

import multiprocessing
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from worker import slots

_FORK = multiprocessing.get_context("fork")  # as a worker starts its children


def free_for_another(slot: Callable[[], AbstractContextManager[bool]]) -> bool:
    """Tell whether another child gets a slot now."""

    def take() -> None:
        with slot() as free:
            raise SystemExit(0 if free else 1)

    child = _FORK.Process(target=take)
    child.start()
    child.join(10)
    return child.exitcode == 0


def test_one_task_of_tests_runs_in_a_worker_and_takes_no_pumps_slot():
    both = partial(slots.pump_slot, 2)
    with slots.tests_slot() as ours:
        assert ours
        assert not free_for_another(slots.tests_slot)
        assert free_for_another(both)
    assert free_for_another(slots.tests_slot)


def test_as_many_pumps_run_as_there_are_slots():
    one, two = partial(slots.pump_slot, 1), partial(slots.pump_slot, 2)
    with one() as ours:
        assert ours
        assert not free_for_another(one)
        assert free_for_another(two)
        assert free_for_another(slots.tests_slot)
    assert free_for_another(one)
