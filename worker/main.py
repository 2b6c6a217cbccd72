"""The Celery application of workers and beat: `celery --app=worker.main:celery worker`."""

from typing import Any

import structlog
from celery import Celery
from celery.signals import setup_logging, worker_shutting_down
from kombu import Exchange, Queue

from config.celery import celery_config
from config.logging import configure_logging
from config.wire import QueueName
from worker import runtime, slots

celery = Celery("botbat")
celery.config_from_object(celery_config(runtime.settings()))
celery.conf.task_queues = [Queue(name, Exchange(name), routing_key=name) for name in map(str, QueueName)]
celery.conf.imports = ("worker.events", "worker.deliveries", "worker.recoveries", "worker.maintenance")


@setup_logging.connect
def _log_as_json(**_kwargs: Any) -> None:
    configure_logging(runtime.settings().log_level)
    structlog.contextvars.bind_contextvars(process="worker")


@worker_shutting_down.connect
def _stop_pumps(**_kwargs: Any) -> None:
    # Sent in the main process; pumps run in its children.
    slots.stopping.set()
