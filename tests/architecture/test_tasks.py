"""Every task has a name of config/wire.py and code behind it, every queue a consumer, and messages carry no work."""

import inspect
import re
from pathlib import Path

import pytest

from app import processes
from app.core.doorbell import MAX_COUNTDOWN_SECONDS
from app.endpoints.policy import MAX_TIMEOUT_SECONDS
from app.endpoints.queues import LEASE_SECONDS
from config.celery import SLOTS_BESIDE_PUMPS, VISIBILITY_TIMEOUT_SECONDS, celery_config
from config.settings import Settings, load_settings
from config.wire import QueueName, TaskName
from worker.pump import RENEWED_EVERY

ROOT = Path(__file__).parents[2]


@pytest.fixture
def celery():
    """Give the workers' application with all its tasks."""
    from worker.main import celery

    celery.loader.import_default_modules()
    return celery


@pytest.fixture
def settings(monkeypatch) -> Settings:
    """Give settings of an installation with PostgreSQL and three pumps."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1/nothing")
    monkeypatch.setenv("BOTBAT_PUMPS", "3")
    return load_settings()


def test_every_name_has_a_task_and_every_task_a_name(celery):
    ours = {name for name in celery.tasks if not name.startswith("celery.")}
    assert ours == {task.value for task in TaskName}


@pytest.mark.parametrize("name", TaskName)
def test_tasks_take_no_arguments(celery, name):
    assert inspect.signature(celery.tasks[name.value].run).parameters == {}


def test_every_queue_has_a_consumer_and_every_task_a_queue(celery):
    declared = {queue.name for queue in celery.conf.task_queues}
    consumed = processes.worker().argv[processes.worker().argv.index("-Q") + 1].split(",")
    assert declared == set(consumed) == {queue.value for queue in QueueName}
    used = {task.queue for task in TaskName}
    assert used | {QueueName.RETRIES} == set(QueueName)  # countdown doorbells alone are in retries
    for task in TaskName:
        assert celery.amqp.router.route({}, task.value)["queue"].name == task.queue.value


def test_the_compose_file_runs_the_same_worker():
    text = (ROOT / "docker-compose.yml").read_text() + (ROOT / "Procfile").read_text()
    assert not re.search(r"\s-Q\s", text), "queues are named in app/processes.py alone"


def test_names_and_queues_are_written_in_one_place():
    """A misspelt name would be a message that nobody takes."""
    names = "|".join(re.escape(each.value) for each in TaskName)
    literal = re.compile(rf"""["']({names})["']""")
    for path in [*ROOT.glob("app/**/*.py"), *ROOT.glob("worker/**/*.py"), ROOT / "config" / "celery.py"]:
        assert not literal.search(path.read_text()), path


def test_beat_sends_tasks_by_their_names_and_they_expire(settings):
    schedule = celery_config(settings)["beat_schedule"]
    assert {entry["task"] for entry in schedule.values()} <= {task.value for task in TaskName}
    for name, entry in schedule.items():
        assert name == entry["task"]
        # Sweeps that pile up while no worker runs are of no use to anyone.
        assert 0 < entry["options"]["expires"] <= 2 * entry["schedule"]
    assert {TaskName.EVENTS_SWEEP.value, TaskName.DELIVERIES_SWEEP.value} <= set(schedule)
    for sweep in (TaskName.EVENTS_SWEEP, TaskName.DELIVERIES_SWEEP):
        assert schedule[sweep.value]["schedule"] <= 10


def test_messages_are_acknowledged_early_and_nothing_is_kept_of_results(settings):
    config = celery_config(settings)
    assert config["task_acks_late"] is False
    assert config["result_backend"] is None
    assert config["task_ignore_result"] is True
    assert config["accept_content"] == ["json"]
    assert config["task_serializer"] == "json"


def test_no_message_is_handed_out_twice_while_it_waits(settings):
    options = celery_config(settings)["broker_transport_options"]
    assert options["visibility_timeout"] == VISIBILITY_TIMEOUT_SECONDS
    # Twice, for a worker's clock and for the second by which a countdown is rounded up.
    assert options["visibility_timeout"] >= 2 * MAX_COUNTDOWN_SECONDS


def test_a_worker_has_room_for_its_pumps_and_for_the_rest(settings):
    config = celery_config(settings)
    assert config["worker_concurrency"] == 3 + SLOTS_BESIDE_PUMPS
    # Fan-out and maintenance each find one while all pumps and a task of tests wait for receivers.
    assert SLOTS_BESIDE_PUMPS >= 3
    assert config["worker_prefetch_multiplier"] == 1


def test_workers_wait_for_a_broker_that_is_away_however_long(settings):
    config = celery_config(settings)
    assert config["broker_connection_retry_on_startup"] is True
    assert config["broker_connection_max_retries"] is None


def test_a_lease_outlives_the_longest_attempt_and_two_missed_renewals():
    assert LEASE_SECONDS > MAX_TIMEOUT_SECONDS + RENEWED_EVERY
    assert LEASE_SECONDS > 3 * RENEWED_EVERY


def test_the_pinned_celery_is_one_that_survives_its_broker():
    """5.7.0 ends with an AttributeError when Redis restarts under it: docs/decisions/0002."""
    assert re.search(r"^celery==5\.6\.", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
