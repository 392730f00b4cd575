"""An import on a real server stores each row once, for any number of runs and importers.

Sabotages that turn this file red, each tried on a copy:

- append moves the position without looking where it is, or looks and does not move it;
- it moves although there is no room, or not at all where all rows are refused by the fence;
- the position is taken as it is, without its digest;
- the position moves past a bad row, or past rows that only the header made done;
- a step that is stored already is taken for a refusal: a lost reply ends the import.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import select
import socket
import threading
import uuid

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from mm_tasks.buffer.batches import BatchLimits
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.producer import APPEND_RECORDS_MAX, Appended, Producer, Record
from mm_tasks.buffer.records import HEADER_BYTES, tag
from mm_tasks.buffer.scripts import Script
from mm_tasks.errors import BufferFull, BufferUnavailable, ImportRefused
from mm_tasks.imports.chunks import ChunkReader, RowEncoder, Stop
from mm_tasks.imports.columns import mapping, source
from mm_tasks.imports.importer import Import, ImportResult, check
from mm_tasks.imports.position import ALREADY_STORED, Position, Positions, Step
from mm_tasks.imports.reader import CsvRows, Lines, json_rows, opened

KEYS = ProjectKeys("p")
LIMITS = BatchLimits(events_max=500, bytes_max=256_000, linger_ms=0)
BYTES_MAX = 255_000
# Above the text of any script, below that of a part.
LARGE = 30_000


class Seen:
    """A listener that records its calls."""

    def __init__(self, on_progress=lambda: None, on_wait=lambda: None):
        self.lines = []
        self.waits = []
        self._on_progress = on_progress
        self._on_wait = on_wait

    def bad(self, rows):
        self.lines += [f"line {row.line}: {problem}" for row in rows for problem in row.problems]

    def progress(self, _):
        self._on_progress()

    def waiting(self, why):
        self.waits.append(why)
        self._on_wait()


class Importer:
    """The objects of one process that imports."""

    def __init__(self, redis, held_bytes_max=1 << 30):
        self.redis = redis
        self.producer = Producer(redis, "p", "track", LIMITS, held_bytes_max=held_bytes_max)
        self.positions = Positions(redis, "p")
        self.stop = Stop()

    def run(  # noqa: PLR0913 - what a command may be told
        self, data, name="f", *, again=False, skip_bad=False, watch=None, csv_maps=None
    ):
        lines = Lines(opened(io.BufferedReader(io.BytesIO(data))))
        rows, columns = json_rows(lines), dict
        if csv_maps is not None:
            rows = CsvRows(lines, ",")
            columns = mapping(rows.header, [source("--map", words) for words in csv_maps], [])
        encode = RowEncoder("p", name, BYTES_MAX, columns)
        reading = ChunkReader(lines, rows, encode, skip_bad=skip_bad, stop=self.stop)
        tally = ImportResult(name)
        one = Import(self.positions, self.producer, tally, watch or Seen(), self.stop)
        one.resume(lines, again=again)
        self.nudges = 0
        one.store(reading, self._nudged)
        return tally

    def _nudged(self):
        self.nudges += 1

    def stored(self):
        """Return the events that wait."""
        records = self.redis.lrange(KEYS.lane("track").waiting, 0, -1)
        return [json.loads(record[HEADER_BYTES:]) for record in records]

    def numbers(self):
        return [event["properties"]["n"] for event in self.stored()]

    def close(self):
        for line in (self.producer._connection, self.positions._connection):  # noqa: SLF001 - never closed
            for connection in line._idle:  # noqa: SLF001
                connection.disconnect()


@pytest.fixture
def start(redis):
    """Make importers, each as if it were a process of its own."""
    made = []

    def make(client=redis, **options):
        made.append(Importer(client, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def importer(start):
    return start()


def rows(*numbers, **fields):
    events = ({"event": "e", "user_id": f"u{n}", "properties": {"n": n}, **fields} for n in numbers)
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def test_each_row_is_stored_once_and_a_second_run_stores_nothing(importer):
    data = rows(*range(2500))
    first = importer.run(data)
    second = importer.run(data)

    assert importer.numbers() == list(range(2500))
    assert (first.stored, first.lines, first.end) == (2500, 2500, "finished")
    assert (second.stored, second.lines, second.lines_before) == (0, 2500, 2500)
    assert importer.nudges == 0


def test_a_full_batch_is_reported(importer):
    importer.run(rows(*range(600)))

    assert importer.nudges == 1


class KilledError(Exception):
    """The process dies here."""


def run_until_killed(importer, data, dies_after=1, **options):
    """Run an import that dies after so many chunks."""
    left = iter(range(dies_after - 1))

    def die():
        if next(left, None) is None:
            raise KilledError

    with pytest.raises(KilledError):
        importer.run(data, watch=Seen(on_progress=die), **options)


@pytest.mark.parametrize("dies_after", [1, 2, 3])
def test_an_interrupted_import_continues_where_it_was(start, dies_after):
    data = rows(*range(3500))
    run_until_killed(start(), data, dies_after)
    after = start()
    tally = after.run(data)

    assert tally.lines_before == dies_after * APPEND_RECORDS_MAX
    assert after.numbers() == list(range(3500))


def test_a_row_has_the_same_id_on_every_run(importer, redis):
    """From project, name and line alone: it is `uuid5`, which anybody can compute."""
    data = rows(1, 2) + b"\n" + rows(3) + rows(4, event_id="given")
    importer.run(data)
    ids = [event["event_id"] for event in importer.stored()]
    redis.flushdb()
    importer.run(data)

    assert [event["event_id"] for event in importer.stored()] == ids
    namespace = uuid.UUID("5f1d9a52-7c1e-4d0e-9a0e-3f6f6a1b8c2d")
    assert ids == [*(str(uuid.uuid5(namespace, f"p\0f\0{n}")) for n in (1, 2, 4)), "given"]
    redis.flushdb()
    importer.run(data, "other")
    others = [event["event_id"] for event in importer.stored()]
    assert set(ids) & set(others) == {"given"}


def entries(n):
    return [Record(b'{"event":"e"}', None, None)] * n


def test_a_repeated_step_is_found_stored(importer, redis):
    """A reply was lost: asking again is the only way to know."""
    step = Step(None, Position(3, "a"))
    first = importer.positions.append(importer.producer, "f", step, entries(3))
    again = importer.positions.append(importer.producer, "f", step, entries(3))

    assert first == Appended(frozenset(), nudge=False)
    assert first is not ALREADY_STORED
    assert again is ALREADY_STORED
    assert redis.llen(KEYS.lane("track").waiting) == 3
    assert importer.positions.find("f") == (3, "a")


@pytest.mark.parametrize(
    "before",
    [None, Position(1, "a"), Position(2, "x")],
    ids=["a first one", "one behind", "another file"],
)
def test_a_step_from_elsewhere_stores_nothing(importer, redis, before):
    step = Step(before, Position(3, "c"))
    importer.positions.append(importer.producer, "f", Step(None, Position(2, "b")), entries(2))
    with pytest.raises(ImportRefused, match="another import of this name"):
        importer.positions.append(importer.producer, "f", step, entries(1))

    assert redis.llen(KEYS.lane("track").waiting) == 2
    assert importer.positions.find("f") == (2, "b")


class Cutter:
    """Passes on to Redis; of every third large request it loses the reply, or the request."""

    def __init__(self, redis_url, lost):
        self._port = Redis.from_url(redis_url).connection_pool.connection_kwargs["port"]
        self._lost = lost
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.requests = self.cuts = 0
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def end(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._serve, args=(near,), daemon=True))
            self._threads[-1].start()

    def _serve(self, near):
        with near, socket.create_connection(("127.0.0.1", self._port)) as far:
            self._pass_on(near, far)

    def _pass_on(self, near, far):
        size = 0
        while True:
            ready, _, _ = select.select([near, far], [], [])
            source = ready[0]
            heard = source.recv(1 << 16)
            if not heard:
                return
            if source is near:
                was_large, size = size > LARGE, size + len(heard)
                self.requests += size > LARGE and not was_large
            is_cut = size > LARGE and self.requests % 3 == 0
            if is_cut and (source is far or self._lost == "request"):
                self.cuts += 1
                return
            (far if source is near else near).sendall(heard)
            size = 0 if source is far else size


@pytest.mark.parametrize("lost", ["request", "reply"])
def test_a_lost_request_or_reply_repeats_and_loses_nothing(start, redis, redis_url, lost):
    redis.script_load(Script("append").text)
    proxy = Cutter(redis_url, lost)
    client = Redis(port=proxy.port, socket_timeout=20, retry=Retry(NoBackoff(), 0))
    importer, seen = start(client), Seen()
    tally = importer.run(rows(*range(6500)), watch=seen)
    importer.close()
    client.close()
    proxy.end()

    assert start(redis).numbers() == list(range(6500))
    assert proxy.cuts >= 2
    assert seen.waits == ["for Redis"] * proxy.cuts
    assert tally.stored == 6500


def test_two_importers_of_one_name_repeat_nothing(start, redis, redis_url):
    """A late importer stores nothing: it is refused, or finds the chunk stored."""
    data = rows(*range(8000))
    refusals = []

    def work(importer):
        try:
            importer.run(data)
        except ImportRefused as refused:
            refusals.append(refused)

    clients = [Redis.from_url(redis_url) for _ in range(3)]
    threads = [threading.Thread(target=work, args=(start(client),)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = start(redis)
    last.run(data)
    for client in clients:
        client.close()

    assert last.numbers() == list(range(8000))


def test_a_file_that_grew_or_was_corrected_later_continues(importer):
    """The first one ends without a line end, as some programs write them."""
    importer.run(rows(1, 2).rstrip(b"\n"))
    grown = importer.run(rows(1, 2, 3) + b"{}\n" + rows(4))
    corrected = importer.run(rows(1, 2, 3, 9, 4))

    assert grown.end == "bad"
    assert (grown.stored, grown.lines) == (1, 3)
    assert corrected.stored == 2
    assert importer.numbers() == [1, 2, 3, 9, 4]


@pytest.mark.parametrize(
    "other", [rows(1, 5, 3), rows(1), b"", rows(1) + b"\n" + rows(2)], ids=range(4)
)
def test_another_file_of_that_name_is_refused(importer, other):
    importer.run(rows(1, 2))
    with pytest.raises(ImportRefused, match="the first 2 lines are not those"):
        importer.run(other)

    assert importer.numbers() == [1, 2]


def test_again_starts_over_and_can_be_interrupted(start):
    data = rows(*range(1500))
    start().run(data)
    run_until_killed(start(), data, again=True)
    after = start()
    tally = after.run(data)

    assert tally.lines_before == 1000
    assert after.numbers() == [*range(1500), *range(1500)]


def test_a_bad_row_ends_the_import_before_it_and_its_chunk_is_named(importer):
    seen = Seen()
    data = rows(1) + b'{"event": "e", "user_id": 7}\n' + rows(2) + b"{\n" + rows(3)
    tally = importer.run(data, watch=seen)

    assert importer.numbers() == [1]
    assert (tally.end, tally.lines, tally.stored, tally.bad) == ("bad", 1, 1, 2)
    assert seen.lines == [
        "line 2: user_id: must be a string; use str()",
        "line 4: row: is not JSON",
    ]
    importer.run(rows(1, 2, 3))
    assert importer.numbers() == [1, 2, 3]


def test_a_bad_first_row_leaves_no_position(importer):
    """So that a header, or a name, can still be corrected."""
    importer.run(b"evnt\na\n".replace(b"evnt", b"event,user_id"), csv_maps=[])

    assert importer.positions.find("f") is None
    assert importer.run(b"event\na\n", csv_maps=[]).stored == 1


def test_skip_bad_stores_the_good_rows_and_names_the_others(importer):
    seen = Seen()
    data = rows(1) + b"nonsense\n" + rows(2) + b"[]\n"
    tally = importer.run(data, skip_bad=True, watch=seen)

    assert importer.numbers() == [1, 2]
    assert (tally.stored, tally.bad, tally.lines, tally.end) == (2, 2, 4, "finished")
    assert [line[:6] for line in seen.lines] == ["line 2", "line 4"]
    assert importer.run(data, skip_bad=True).stored == 0


def test_rows_of_erased_persons_are_counted_and_the_import_moves_past_them(importer, redis):
    redis.sadd(KEYS.fence, tag("p", "user", "u1"), tag("p", "user", "u3"))
    tally = importer.run(rows(1, 2, 3))
    alone = importer.run(rows(1), "alone")

    assert importer.numbers() == [2]
    assert (tally.stored, tally.suppressed) == (1, 2)
    assert (alone.stored, alone.suppressed, importer.positions.find("alone").lines) == (0, 1, 1)


def test_rows_without_a_timestamp_are_counted(importer):
    tally = importer.run(rows(1) + rows(2, timestamp="2020-01-01T00:00:00.000Z"))

    assert tally.undated == 1
    assert importer.stored()[1]["timestamp"] == "2020-01-01T00:00:00.000Z"


def test_it_waits_for_room_and_goes_on(start, redis):
    importer = start(held_bytes_max=200_000)
    data = rows(*range(3000))
    found = []

    def drain():
        found.extend(importer.numbers())
        redis.delete(KEYS.lane("track").waiting)
        redis.hset(KEYS.counts, "held_bytes", 0)

    seen = Seen(on_wait=drain)
    tally = importer.run(data, watch=seen)

    assert set(seen.waits) == {"for room in the buffer"}
    assert found + importer.numbers() == list(range(3000))
    assert tally.stored == 3000


def test_without_room_the_position_stays(start):
    importer = start(held_bytes_max=10)
    with pytest.raises(BufferFull):
        importer.positions.append(importer.producer, "f", Step(None, Position(1, "a")), entries(1))

    assert importer.positions.find("f") is None


def test_a_redis_that_stays_away_ends_it(start, monkeypatch):
    """After a minute, here after a moment; the next run tells what was stored."""
    monkeypatch.setattr("mm_tasks.imports.importer._GIVE_UP_S", 0.3)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        away = Redis(port=sock.getsockname()[1], retry=Retry(NoBackoff(), 0))
    importer, seen = start(away), Seen()
    importer.positions.find = lambda _: None
    with pytest.raises(BufferUnavailable):
        importer.run(rows(1), watch=seen)

    assert set(seen.waits) == {"for Redis"}


@pytest.mark.parametrize("held_bytes_max", [1 << 30, 10], ids=["between rows", "while it waits"])
def test_a_signal_ends_it_with_the_current_chunk(start, held_bytes_max):
    importer = start(held_bytes_max=held_bytes_max)

    def ask():
        importer.stop.signal = 2

    tally = importer.run(rows(*range(2500)), watch=Seen(on_progress=ask, on_wait=ask))

    assert tally.end == "stopped"
    stored = 1000 if held_bytes_max > 10 else 0
    assert (tally.stored, tally.lines) == (stored, stored)
    later = start()
    later.run(rows(*range(2500)))
    assert later.numbers() == list(range(2500))


def test_large_rows_make_small_chunks(importer):
    """A thousand of the largest events would be a command of 256 MB."""
    data = rows(*range(40), url="https://example.com/" + "a" * 2000, path="b" * 2000)
    sizes = []
    append = importer.positions.append
    importer.positions.append = lambda *args: sizes.append(len(args[3])) or append(*args)
    long = b'{"event": "e", "properties": {"n": 1}%b}\n' % (b" " * 900_000)
    importer.run(data + long * 10)

    assert sizes == [45, 5]


def test_csv_gzip_and_its_header_resume_as_well(start):
    written = io.StringIO(newline="")
    writer = csv.writer(written)
    writer.writerow(["event", "Who", "properties.n"])
    writer.writerows(["e", f"first\nlast {n}", n] for n in range(1500))
    data = gzip.compress(written.getvalue().encode())
    maps = ["user_id=Who", "properties.n:int=properties.n"]
    run_until_killed(start(), data, csv_maps=maps)
    after = start()
    tally = after.run(data, csv_maps=maps)

    assert after.numbers() == list(range(1500))
    assert after.stored()[-1]["user_id"] == "first\nlast 1499"
    assert tally.lines_before == 2 + 2 * 1000 - 1
    with pytest.raises(ImportRefused):
        after.run(b"other\n1\n", csv_maps=[])


def test_rows_before_the_end_of_what_can_be_read_are_stored(importer):
    with pytest.raises(ImportRefused, match="line 3: has a quote"):
        importer.run(b'event\na\n"b"x\nc\n', csv_maps=[])

    assert [event["event"] for event in importer.stored()] == ["a"]


def test_a_check_names_every_bad_row_of_all_parts_and_needs_no_redis():
    data = (rows(*range(1500)) + b"{}\n") * 2
    lines = Lines(opened(io.BufferedReader(io.BytesIO(data))))
    encode = RowEncoder("p", "f", BYTES_MAX)
    reading = ChunkReader(lines, json_rows(lines), encode, skip_bad=True, stop=Stop())
    seen = Seen()
    tally = ImportResult("f")
    check(reading, tally, seen)

    assert seen.lines == ["line 1501: event: is required", "line 3002: event: is required"]
    assert (tally.stored, tally.bad, tally.end) == (3000, 2, "finished")
