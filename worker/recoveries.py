"""Tasks on recoveries."""

from app.deliveries import recoveries
from config.wire import TaskName
from worker import runtime
from worker.main import celery


@celery.task(name=TaskName.RECOVERIES_ADVANCE.value)
def advance() -> None:
    """Do what recoveries have to do now; rung when one starts or has paused, and by beat for what nobody rang."""
    resources = runtime.resources()
    resources.doorbell.answer(TaskName.RECOVERIES_ADVANCE)
    going_on = True
    while going_on:
        # Looking takes no lock; on SQLite a step would hold up every writer each time.
        with resources.transaction(write=False) as uow:
            going_on = recoveries.any_due(uow)
        if going_on:
            with resources.transaction() as uow:
                going_on = recoveries.advance(uow)
