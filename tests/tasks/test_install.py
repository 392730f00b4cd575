"""Our tasks in a host's Celery app, on a real Redis; the tests do the work of a worker."""

import base64
import copy
import json
import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest
from celery import Celery, chain, current_app
from celery.app.trace import build_tracer
from celery.beat import Scheduler, Service
from celery.signals import beat_init, celeryd_after_setup, celeryd_init
from kombu import Queue

from mm_tasks import app, forget, identify, install, track
from mm_tasks.errors import ConfigurationError, InvalidEvent
from mm_tasks.tasks import registry, worker
from mm_tasks.tasks.install import setting_warnings
from mm_tasks.timestamps import now

NAMES = {task.name for task in registry.TASKS}
ENTRIES = {"mm_tasks-flush-track", "mm_tasks-flush-identify", "mm_tasks-sweep-erasures"}
OURS = {"mm.forget", "mm.identify", "mm.deliver"}


def work(host, result):
    """Register a task of the host that returns this."""

    def body():
        return result

    host.task(body, name="host.work", shared=False, ignore_result=True)


def run_chain(host, redis, result, signature):
    """Run a task of the host with this result; return it with the published task of ours."""
    work(host, result)
    tasks = chain(host.signature("host.work"), signature)
    tasks.apply_async(queue="slow", serializer="json")
    return run(host, "slow", redis), run(host, "mm.deliver", redis)


def run(host, queue, redis):
    """Run the oldest message of a queue as a worker does; return the state it ends in."""
    message = json.loads(redis.rpop(f"host:{queue}"))
    args, kwargs, embed = json.loads(base64.b64decode(message["body"]))
    request = {**message["headers"], **embed, "args": args, "is_eager": False}
    name = request["task"]
    tracer = build_tracer(name, host.tasks[name], app=host)
    return tracer(request["id"], args, kwargs, request).retval


def start_worker(host, *queues):
    """Do with an app what a worker with these queues for `-Q` does before it connects."""
    worker_process = SimpleNamespace(app=host)
    celeryd_init.send(sender="w", instance=worker_process, conf=host.conf, options={})
    host.select_queues(queues)
    celeryd_after_setup.send(sender="w", instance=worker_process, conf=host.conf)


def start_beat(host):
    """Return the schedule of a beat that starts."""
    service = Service(host, scheduler_cls=Scheduler)
    assert service.scheduler  # made before the signal, as the banner names it
    beat_init.send(sender=service)
    return service.scheduler.schedule


def queue_of(host, task):
    return host.amqp.router.route({}, task)["queue"].name


def assert_queues(host, **queues):
    """Compare the queues of our tasks, given by the last part of their names."""
    assert {name: queue_of(host, f"mm_tasks.{name}") for name in queues} == queues


def route_warnings(host):
    return [sentence for sentence in setting_warnings(host) if "task_routes" in sentence]


@pytest.mark.parametrize("is_read", [False, True], ids=["before", "after"])
def test_install_works_before_and_after_the_settings_are_read_and_does_not_read_them(host, is_read):
    if is_read:
        host.finalize()
        assert host.amqp.router
        assert host.amqp.queues
    install(host)
    install(host)

    assert (host.configured, host.finalized) == (is_read, is_read)
    assert set(host.tasks) >= NAMES
    assert all(host.tasks[task.name] is task and task.app is host for task in registry.TASKS)
    assert not any(task.rate_limit for task in registry.TASKS)  # the host has one for its own
    assert set(host.conf.beat_schedule) == ENTRIES | {"host-entry"}
    queues = {"track": "mm.deliver", "identify": "mm.identify", "forget": "mm.forget"}
    assert_queues(host, **queues, sweep_erasures="mm.forget")
    assert (queue_of(host, "host.quick"), queue_of(host, "host.work")) == ("quick", "slow")
    start_worker(host)
    assert set(host.amqp.queues.consume_from) == OURS | {"celery"}


def test_install_changes_no_setting_but_beat_schedule_and_task_routes(host):
    settings = copy.deepcopy(dict(host.conf))
    install(host)
    host.finalize()
    after = copy.deepcopy(dict(host.conf))
    for entry in ENTRIES:
        del after["beat_schedule"][entry]
    _, after["task_routes"] = after["task_routes"]

    assert after == settings


@pytest.mark.usefixtures("host")
def test_the_module_of_the_settings_stays_unchanged(monkeypatch):
    module = ModuleType("hostsettings")
    module.CELERY_BEAT_SCHEDULE = {"host-entry": {"task": "host.work", "schedule": 5.0}}
    monkeypatch.setitem(sys.modules, "hostsettings", module)
    plain = Celery("plain", set_as_current=False)
    plain.config_from_object("hostsettings", namespace="CELERY")
    install(plain)

    assert set(plain.conf.beat_schedule) == ENTRIES | {"host-entry"}
    assert set(module.CELERY_BEAT_SCHEDULE) == {"host-entry"}


@pytest.mark.usefixtures("host")
def test_settings_that_are_read_again_get_our_entries_again():
    plain = Celery("plain", set_as_current=False)
    assert not plain.conf.beat_schedule
    install(plain)
    plain.config_from_object({"beat_schedule": {"other": {"task": "host.work", "schedule": 5.0}}})

    assert set(plain.conf.beat_schedule) == ENTRIES | {"other"}


def test_the_proxy_of_the_current_app_is_resolved_at_once(host):
    before = current_app._get_current_object()  # noqa: SLF001
    host.set_current()
    try:
        install(current_app)
        install(host)
    finally:
        before.set_current()

    assert set(host.tasks) >= NAMES
    assert track.app is host


def test_queues_and_routes_that_the_host_sets_after_install_win(installed, redis_url):
    installed.conf.task_queues = [Queue("first"), Queue("mm.forget", routing_key="theirs")]
    installed.conf.task_routes = ({"host.quick": "first"}, {"mm_tasks.track": {"queue": "first"}})
    installed.conf.broker_url = redis_url

    assert queue_of(installed, "host.quick") == "first"
    assert_queues(installed, track="first", identify="mm.identify")
    installed.conf.update(task_routes={"mm_tasks.*": "first"})
    install(installed)
    assert_queues(installed, identify="first")
    start_worker(installed)
    assert set(installed.amqp.queues.consume_from) == OURS | {"first"}
    assert installed.amqp.queues["mm.forget"].routing_key == "theirs"


@pytest.mark.parametrize("restore", [install, start_worker])
def test_routes_that_are_replaced_later_are_a_warning_until_they_are_restored(installed, restore):
    """Celery has no hook for an assignment to a setting that was read already."""
    assert installed.conf.task_routes
    installed.conf.update(task_routes={"*": "slow"})
    assert route_warnings(installed)
    assert_queues(installed, track="slow")
    restore(installed)

    assert not route_warnings(installed)
    assert installed.conf.task_routes[1:] == ({"*": "slow"},)
    assert_queues(installed, track="mm.deliver")
    assert queue_of(installed, "host.work") == "slow"


def test_a_host_without_missing_queues_need_not_declare_ours(host, published, fresh):
    """There, Celery refuses to publish to a queue that is named by text and not declared."""
    fresh(MM_TASKS_BATCH_EVENTS_MAX="1")
    host.conf.task_create_missing_queues = False
    host.conf.task_queues = [Queue("celery")]
    install(host)
    track.delay("e")
    host.send_task("mm_tasks.track", ("e",))

    tasks = [headers["task"] for headers, *_ in published("mm.deliver")]
    assert tasks == ["mm_tasks.track", "mm_tasks.flush"]
    start_beat(host)
    assert set(host.amqp.queues) == OURS | {"celery"}


@pytest.mark.parametrize("is_read", [False, True], ids=["before", "after"])
def test_a_worker_told_its_queues_serves_no_others(host, is_read):
    if is_read:
        assert host.amqp.queues
    install(host)
    start_worker(host, "celery", "mm.forget")

    assert set(host.amqp.queues.consume_from) == {"celery", "mm.forget"}
    assert set(host.amqp.queues) == OURS | {"celery"}


@pytest.mark.usefixtures("installed")
def test_only_one_app_of_a_process_can_have_the_tasks():
    other = Celery("other", set_as_current=False)

    with pytest.raises(ConfigurationError):
        install(other)
    assert not set(other.tasks) & NAMES


def test_autodiscovery_without_install_adds_no_tasks(host):
    """Celery shares tasks made by its decorator with every app of the process."""
    host.autodiscover_tasks(["mm_tasks"], force=True)
    host.finalize()

    assert not set(host.tasks) & NAMES
    assert track.app is app


def test_neither_autodiscovery_nor_our_own_app_takes_the_tasks_back(installed):
    installed.autodiscover_tasks(["mm_tasks"])
    installed.loader.import_default_modules()
    installed.finalize()
    app.finalize()

    assert installed.tasks["mm_tasks.track"] is track
    assert track.app is installed


def test_beat_adds_entries_that_a_later_assignment_removed(host, fresh):
    fresh(MM_TASKS_FLUSH_INTERVAL_S="0.5")
    install(host)
    assert host.conf.beat_schedule
    host.conf.beat_schedule = {"mm_tasks-sweep-erasures": {"task": "theirs", "schedule": 9.0}}
    schedule = start_beat(host)

    assert set(schedule) >= ENTRIES
    assert schedule["mm_tasks-flush-track"].schedule.run_every.total_seconds() == 0.5
    assert schedule["mm_tasks-sweep-erasures"].task == "theirs"


def test_a_message_goes_through_the_hosts_broker_as_json_and_redacted(installed, published):
    identify.apply_async(kwargs={"anonymous_id": "a", "user_id": "s3cret"}, countdown=60)
    installed.send_task("mm_tasks.track", ("e",), {"user_id": "s3cret"})
    ((headers, _, fields),) = published("mm.identify")
    ((by_name, _, _),) = published("mm.deliver")

    assert fields["user_id"] == "s3cret"
    assert "s3cret" not in json.dumps([headers, by_name])
    assert headers["ignore_result"]


@pytest.mark.usefixtures("installed")
def test_an_invalid_call_with_a_countdown_raises_in_the_caller(published):
    with pytest.raises(InvalidEvent):
        track.apply_async(("e",), {"usr_id": "u"}, countdown=60)
    with pytest.raises(InvalidEvent):
        forget.apply_async(("u",), countdown=60)
    assert published("mm.deliver") == published("mm.forget") == []


@pytest.mark.parametrize("result", ["a result", None, {"a": 1}])
@pytest.mark.parametrize(
    "signature",
    [
        lambda: track.s("done", user_id="u"),
        lambda: track.s(event="done", user_id="u"),
        lambda: track.si("done", user_id="u"),
    ],
    ids=["by position", "by name", "immutable"],
)
def test_the_last_task_of_a_chain_stores_its_event(installed, redis, stored, signature, result):
    run_chain(installed, redis, result, signature())
    assert [(event["event"], event["user_id"]) for event in stored()] == [("done", "u")]


def test_a_chain_may_pass_the_name_of_the_event(installed, redis, stored):
    run_chain(installed, redis, "done", track.s(user_id="u"))
    assert [event["event"] for event in stored()] == ["done"]


def test_the_results_of_a_group_are_ignored_like_the_result_of_one_task(installed, redis, stored):
    """Celery calls this at the end of a chord, without `parent_id`."""
    track.s("done", user_id="u").set(group_id="g", queue="mm.deliver").delay([1, 2])
    run(installed, "mm.deliver", redis)

    assert [(event["event"], event["user_id"]) for event in stored()] == [("done", "u")]
    with pytest.raises(InvalidEvent):
        track.s("done", user_id="u").set(group_id="g", queue="mm.deliver").delay("u")


def test_an_invalid_event_at_the_end_of_a_chain_does_not_fail_the_task_before(installed, redis):
    before, ours = run_chain(installed, redis, "done", track.s("e", usr_id="u"))
    assert before == "done"
    assert isinstance(ours.exception, InvalidEvent)


def test_a_message_that_is_delivered_twice_stores_the_same_event_id(installed, redis, stored):
    sent = track.apply_async(("e",), {"user_id": "u"}, queue="mm.deliver")
    message = redis.lindex("host:mm.deliver", 0)
    run(installed, "mm.deliver", redis)
    redis.lpush("host:mm.deliver", message)
    run(installed, "mm.deliver", redis)

    assert [event["event_id"] for event in stored()] == [sent.id, sent.id]


def test_a_message_waits_in_the_broker_while_the_buffer_is_away(installed, redis, fresh, published):
    track.apply_async(("e",), queue="mm.deliver")
    fresh(MM_TASKS_REDIS_URL="redis://127.0.0.1:1/0")
    run(installed, "mm.deliver", redis)

    ((headers, args, _),) = published("mm.deliver")
    assert (headers["retries"], args) == (1, ["e"])


@pytest.mark.usefixtures("installed")
def test_the_month_of_a_forget_message_starts_at_the_call(published):
    before = now()
    forget.s(user_id="u", requested_by="dpo").apply_async(countdown=60)
    ((headers, _, fields),) = published("mm.forget")

    assert before <= fields["received_at"] <= now()
    assert headers["kwargsrepr"] == "{...}"


def test_eager_calls_store_in_the_caller_and_publish_nothing(host, stored, fresh):
    fresh(MM_TASKS_BATCH_EVENTS_MAX="1")
    host.conf.task_always_eager = True
    host.conf.broker_url = "redis://127.0.0.1:1/0"
    install(host)
    track.delay("a")
    track.apply_async(("b",), countdown=60)
    work(host, "x")
    chain(host.signature("host.work"), track.s("c")).apply_async()

    assert [event["event"] for event in stored()] == ["a", "b", "c"]


def test_annotations_for_all_tasks_do_not_apply_to_ours(host, published, monkeypatch):
    monkeypatch.setattr(type(worker.flush), "expires", None)  # so that it is None afterwards
    host.conf.task_annotations = {
        "*": {"serializer": "pickle", "max_retries": 3, "acks_late": False, "rate_limit": "1/m"},
        "mm_tasks.flush": {"expires": 7},
    }
    install(host)
    for task in registry.TASKS:
        task.annotate()  # as where a process uses them first
    track.apply_async(("e",), countdown=60)

    assert published("mm.deliver")
    assert (track.max_retries, track.acks_late, track.rate_limit) == (None, True, 0)
    assert worker.flush.expires == 7


def test_a_worker_of_the_host_logs_harmful_settings(host, caplog):
    host.conf.update(accept_content=["pickle"], task_time_limit=5)
    host.conf.worker_cancel_long_running_tasks_on_connection_loss = True
    host.conf.broker_transport_options = {"visibility_timeout": 60}
    install(host)
    with caplog.at_level(logging.WARNING):
        start_worker(host)

    words = ("accept_content", "visibility_timeout", "task_time_limit", "prefetch")
    for word in (*words, "connection_loss", "remote_control"):
        assert word in caplog.text


def test_our_own_app_has_no_setting_that_it_warns_of(stored):  # noqa: ARG001 - its settings
    """Celery's remote control shows arguments; its cancelling repeated 2 000 events."""
    warnings = [sentence for sentence in setting_warnings(app) if "task_routes" not in sentence]

    assert warnings == []


def test_a_worker_that_serves_none_of_our_queues_logs_no_warning(installed, caplog):
    with caplog.at_level(logging.WARNING):
        start_worker(installed, "celery")

    assert "mm_tasks" not in caplog.text


def test_a_plain_call_needs_no_broker_even_if_its_batch_is_full(installed, stored, fresh):
    fresh(MM_TASKS_BATCH_EVENTS_MAX="1")
    installed.conf.broker_url = "redis://127.0.0.1:1/0"
    assert [track.delay("e").id] == [event["event_id"] for event in stored()]
