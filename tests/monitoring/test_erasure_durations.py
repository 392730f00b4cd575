"""Step times of erasures, from logs of real erasures in both databases."""

from datetime import timedelta

from mm_tasks.buffer import histograms
from mm_tasks.monitoring.erasure_durations import STEPS, ErasureDurations
from tests.erasure.stores import DONE, NOW, VISITOR, Store, after


def read(progress, store):
    progress.read(store.database)
    return {
        step: (buckets[-1][1], total)
        for step in STEPS
        for buckets, total in [histograms.read(progress.histogram_counters, step, histograms.STEP)]
        if buckets[-1][1]
    }


def test_each_step_is_counted_once_with_the_time_it_took(store):
    claim = store.ask().claim
    claim = store.steps.mark_fenced(claim, after(seconds=2))
    claim = store.steps.mark_purged(claim, {"track:waiting": 1}, after(seconds=5))
    claim = store.steps.mark_purged(claim, {"track:waiting": 1}, after(seconds=15))
    claim = store.steps.mark_quiesced(claim, (0,), after(seconds=25))
    attempt = store.steps.intent(claim, after(seconds=30))
    store.steps.result(attempt, DONE, after(seconds=33))
    store.steps.complete(claim, after(hours=1))

    assert read(ErasureDurations("p"), store) == {
        "fenced": (1, 2),
        "purged": (1, 3),
        "quiesced": (1, 10),  # since the last look that found something
        "answered": (1, 3),
        "completed": (1, 3600),
    }


def test_a_second_look_adds_only_what_is_new(store):
    """Each scrape is a look, and a counter that counted twice would be no counter."""
    progress = ErasureDurations("p")
    claim = store.quiesced()
    first = read(progress, store)
    assert read(progress, store) == first
    store.call(claim, now=after(seconds=1))

    assert read(progress, store) == {**first, "answered": (1, 0)}


def test_the_time_until_a_scheduled_erasure_begins_is_no_step(store):
    opened = store.ask(delay_s=3600)
    claim = store.steps.claim(opened.id, after(hours=1), 60)
    claim = store.steps.start(claim, after(hours=1))
    store.steps.mark_fenced(claim, after(hours=1, seconds=3))

    assert read(ErasureDurations("p"), store) == {"fenced": (1, 3)}


def test_new_anonymous_ids_are_fenced_and_counted_again(store):
    store.quiesced()
    claim = store.ask(now=after(minutes=5), anonymous_ids=(VISITOR,)).claim
    store.steps.mark_fenced(claim, after(minutes=5, seconds=7))

    assert read(ErasureDurations("p"), store)["fenced"] == (2, 7)


def test_erasures_of_another_project_are_not_shown(url, tmp_path):
    """One audit database may serve several projects; an exporter shows one."""
    mine, other = Store(url, tmp_path), Store(url, tmp_path, project="other")
    other.completed()
    mine.completed(now=NOW + timedelta(days=2))

    assert read(ErasureDurations("p"), mine)["completed"] == (1, 87_300)


def test_a_log_that_became_shorter_is_read_anew(sqlite_store, tmp_path):
    """A backup was restored: what was read of the other log is of no use."""
    progress = ErasureDurations("p")
    sqlite_store.completed()
    read(progress, sqlite_store)
    restored = Store(f"sqlite:///{tmp_path}/restored.sqlite", tmp_path / "other")
    restored.quiesced()

    assert read(progress, restored) == {"fenced": (1, 0), "purged": (1, 0), "quiesced": (1, 0)}
