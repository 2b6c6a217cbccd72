"""Every word that crosses between processes: task names and queue names."""

from enum import StrEnum


class QueueName(StrEnum):
    """Broker queues. Each has a consumer in `worker/main.py`; a test holds it."""

    EVENTS = "events"
    DELIVERIES = "deliveries"
    RETRIES = "retries"  # countdown doorbells alone, so that waiting ones never block fresh ones
    TESTS = "tests"
    MAINTENANCE = "maintenance"


class TaskName(StrEnum):
    """Celery tasks. None takes an argument: the rows say what is to be done."""

    EVENTS_FAN_OUT = "events.fan_out"
    EVENTS_SWEEP = "events.sweep"
    DELIVERIES_PUMP = "deliveries.pump"
    DELIVERIES_SWEEP = "deliveries.sweep"
    DELIVERIES_REQUEUE = "deliveries.requeue"
    DELIVERIES_SEND_TESTS = "deliveries.send_tests"
    RECOVERIES_ADVANCE = "recoveries.advance"
    ENDPOINTS_FORGET_SECRETS = "endpoints.forget_secrets"
    API_KEYS_EXPIRE = "api_keys.expire"
    IDEMPOTENCY_PRUNE = "idempotency.prune"
    RETENTION_APPLY = "retention.apply"

    @property
    def queue(self) -> QueueName:
        """Where the task's messages go; countdown doorbells go to `QueueName.RETRIES` instead."""
        return _QUEUES.get(self, QueueName.MAINTENANCE)


_QUEUES = {
    TaskName.EVENTS_FAN_OUT: QueueName.EVENTS,
    TaskName.DELIVERIES_PUMP: QueueName.DELIVERIES,
    TaskName.DELIVERIES_SEND_TESTS: QueueName.TESTS,
}
