"""gunicorn's configuration: threads, because a request waits on the database and on nothing else."""

from config.logging import configure_logging
from config.settings import load_settings

_settings = load_settings()
configure_logging(_settings.log_level)

bind = f"{_settings.host}:{_settings.port}"
worker_class = "gthread"
workers = _settings.web_processes
threads = _settings.web_threads
keepalive = 75
timeout = 60
graceful_timeout = 8
max_requests = 0
control_socket_disable = True
# Everything goes to the root's JSON handler. No access log: the edge writes one line per request, without secrets.
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "root": {"handlers": []},
    "loggers": {
        "gunicorn.error": {"level": "INFO", "handlers": [], "propagate": True},
        "gunicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},
    },
}


def on_starting(_server: object) -> None:
    """Take logging over again, which gunicorn has configured meanwhile."""
    configure_logging(_settings.log_level)
