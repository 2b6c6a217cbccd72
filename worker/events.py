"""Tasks on events."""

import structlog

from app.deliveries import engine
from config.wire import TaskName
from worker import runtime
from worker.main import celery

log = structlog.get_logger()


@celery.task(name=TaskName.EVENTS_FAN_OUT.value)
def fan_out() -> int:
    """Make the deliveries of all events that wait; gives how many events."""
    resources = runtime.resources()
    resources.doorbell.answer(TaskName.EVENTS_FAN_OUT)
    total = 0
    while True:
        with resources.transaction() as uow:
            events = engine.fan_out(uow)
        total += events
        if events == 0:
            break
    if total:
        log.info("events.fanned_out", events=total)
    return total


@celery.task(name=TaskName.EVENTS_SWEEP.value)
def sweep() -> None:
    """Ring for events that no doorbell announced."""
    with runtime.resources().transaction(write=False) as uow:
        engine.sweep_events(uow)
