"""Tasks on events."""

import structlog

from app.deliveries import engine
from config.wire import TaskName
from worker import runtime
from worker.deliveries import run_pump
from worker.main import celery

log = structlog.get_logger()


@celery.task(name=TaskName.EVENTS_FAN_OUT.value)
def fan_out() -> int:
    """Make the deliveries of all events that wait, and deliver them where a pump is free; gives how many events."""
    resources = runtime.resources()
    resources.doorbell.answer(TaskName.EVENTS_FAN_OUT)
    total = 0
    while True:
        with resources.transaction() as uow:
            events = engine.fan_out(uow)
        if events == 0:
            break
        total += events
        if total >= engine.FAN_OUT_EVENTS:
            # Many wait: another process may deliver while this one goes on.
            resources.doorbell.ring(TaskName.DELIVERIES_PUMP)
    if total:
        log.info("events.fanned_out", events=total)
        # Here and now, which saves a few events a second doorbell's way through the broker.
        run_pump()
    return total


@celery.task(name=TaskName.EVENTS_SWEEP.value)
def sweep() -> None:
    """Ring for events that no doorbell announced."""
    with runtime.resources().transaction(write=False) as uow:
        engine.sweep_events(uow)
