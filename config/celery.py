"""Celery's configuration, for the worker and beat as for whoever rings a doorbell. Why each: docs/decisions/0002."""

from typing import Any

from config.settings import Settings
from config.wire import QueueName, TaskName

# Longer than any countdown: a message that is not acknowledged by then is handed out a second time.
VISIBILITY_TIMEOUT_SECONDS = 7200

# How many slots stay free of pumps: for fan-out, for maintenance, and one for tests, which may hang as long as pumps.
SLOTS_BESIDE_PUMPS = 3


def celery_config(settings: Settings) -> dict[str, Any]:
    """Give Celery's settings in its own lower-case names."""
    return {
        "broker_url": settings.broker_url,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {
            "visibility_timeout": VISIBILITY_TIMEOUT_SECONDS,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "global_keyprefix": "botbat:",
        },
        "result_backend": None,
        "task_ignore_result": True,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_default_queue": QueueName.MAINTENANCE.value,
        "task_routes": {task.value: {"queue": task.queue.value} for task in TaskName},
        "task_acks_late": False,
        "worker_prefetch_multiplier": 1,
        "worker_concurrency": settings.pumps + SLOTS_BESIDE_PUMPS,
        "worker_soft_shutdown_timeout": 15,
        "worker_enable_soft_shutdown_on_idle": True,
        "worker_send_task_events": True,
        "worker_hijack_root_logger": False,
        "enable_utc": True,
        "timezone": "UTC",
        "beat_scheduler": "celery.beat:Scheduler",  # every entry is an interval: nothing to remember on disk
        "beat_schedule": {
            name.value: {"task": name.value, "schedule": seconds, "options": {"expires": seconds * 2}}
            for name, seconds in (
                (TaskName.EVENTS_SWEEP, 5.0),
                (TaskName.DELIVERIES_SWEEP, 5.0),
                (TaskName.DELIVERIES_REQUEUE, 60.0),
                (TaskName.DELIVERIES_SEND_TESTS, 5.0),
                (TaskName.RECOVERIES_ADVANCE, 5.0),
                (TaskName.ENDPOINTS_FORGET_SECRETS, 3600.0),
                (TaskName.API_KEYS_EXPIRE, 60.0),
                (TaskName.IDEMPOTENCY_PRUNE, 3600.0),
                (TaskName.RETENTION_APPLY, 3600.0),
            )
        },
    }
