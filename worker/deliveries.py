"""Tasks on deliveries."""

import structlog

from app.deliveries import engine, trial
from config.wire import TaskName
from worker import runtime, slots, trials
from worker.main import celery
from worker.pump import Pump

log = structlog.get_logger()


@celery.task(name=TaskName.DELIVERIES_PUMP.value)
def pump() -> None:
    """Deliver what is due until nothing is."""
    runtime.resources().doorbell.answer(TaskName.DELIVERIES_PUMP)
    run_pump()


def run_pump() -> None:
    """Deliver what is due until nothing is; where all of this worker's pumps run, they find it by themselves."""
    resources = runtime.resources()
    with slots.pump_slot(runtime.settings().pumps) as free, slots.told_to_stop() as stopping:
        if free and not stopping():
            Pump(resources, runtime.sender(), stopping=stopping).run()
    # After the slot: what became due between a pump's last look and the end of its slot found no pump to ask.
    if free:
        with resources.transaction(write=False) as uow:
            engine.sweep_deliveries(uow)


@celery.task(name=TaskName.DELIVERIES_SWEEP.value)
def sweep() -> None:
    """Ring for deliveries that no doorbell announced."""
    with runtime.resources().transaction(write=False) as uow:
        engine.sweep_deliveries(uow)


@celery.task(name=TaskName.DELIVERIES_REQUEUE.value)
def requeue() -> None:
    """Schedule queues that have pending deliveries but are not scheduled."""
    with runtime.resources().transaction() as uow:
        stranded = engine.requeue(uow)
    if stranded:
        log.error("deliveries.stranded", queues=stranded)


@celery.task(name=TaskName.DELIVERIES_SEND_TESTS.value)
def send_tests() -> None:
    """Send the tests that wait, and those that come meanwhile; only one such task runs in a worker."""
    resources = runtime.resources()
    resources.doorbell.answer(TaskName.DELIVERIES_SEND_TESTS)
    with slots.tests_slot() as free, slots.told_to_stop() as stopping:
        if free:
            trials.run(resources, runtime.tests_sender(), stopping=stopping)
    # After the slot: what came between the last look and the end of the slot found no task to see it.
    if free:
        with resources.transaction(write=False) as uow:
            if trial.any_waiting(uow):
                uow.ring(TaskName.DELIVERIES_SEND_TESTS)
