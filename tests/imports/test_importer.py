"""An import on a real server stores each row once, for any number of runs and importers.

Sabotages that turn this file red, each tried on a copy:

- append moves the position without looking where it is, or looks and does not move it;
- it moves although there is no room, or not at all where all rows are refused by the fence;
- the position is taken as it is, without its digest;
- the position moves past a bad row, or past rows that only the header made done;
- a step that is stored already is taken for a refusal: a lost reply ends the import.
"""

import contextlib
import csv
import gzip
import io
import json
import select
import socket
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from socketserver import ThreadingTCPServer

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from mm_tasks.buffer.batches import BatchLimits
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.producer import APPEND_RECORDS_MAX, Producer, Record
from mm_tasks.buffer.records import tag
from mm_tasks.buffer.refusals import Refusals
from mm_tasks.buffer.scripts import Script
from mm_tasks.errors import BufferFull, BufferUnavailable, ImportRefused
from mm_tasks.imports.chunks import ChunkReader, RowEncoder, Stop
from mm_tasks.imports.columns import mapping, source
from mm_tasks.imports.importer import Import, ImportResult, check
from mm_tasks.imports.position import ALREADY_STORED, Position, Positions, Step
from mm_tasks.imports.reader import CsvRows, Lines, json_rows, opened
from tests.conftest import patient_client, waiting_events

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


def lines_of(data):
    return Lines(opened(io.BufferedReader(io.BytesIO(data))))


class Importer:
    """The objects of one process that imports."""

    def __init__(self, redis, held_bytes_max=1 << 30):
        self.redis = redis
        self._client = client = patient_client(redis)
        self.producer = Producer(
            client, Refusals("p"), "p", "track", LIMITS, held_bytes_max=held_bytes_max
        )
        self.positions = Positions(client, "p")
        self.stop = Stop()

    def run(  # noqa: PLR0913 - the options of a command
        self, data, name="f", *, again=False, skip_bad=False, watch=None, csv_maps=None
    ):
        lines = lines_of(data)
        rows, columns = json_rows(lines), dict
        if csv_maps is not None:
            rows = CsvRows(lines, ",")
            columns = mapping(rows.header, [source("--map", words) for words in csv_maps], [])
        encode = RowEncoder("p", name, BYTES_MAX, columns)
        chunks = ChunkReader(lines, rows, encode, skip_bad=skip_bad, stop=self.stop)
        result = ImportResult(name)
        run = Import(self.positions, self.producer, result, watch or Seen(), self.stop)
        run.resume(lines, again=again)
        self.nudges = 0
        run.store(chunks, self._nudged)
        return result

    def _nudged(self):
        self.nudges += 1

    def append(self, step, n):
        """Append a chunk of n records as an import does."""
        records = [Record(b'{"event":"e"}', None, None)] * n
        return self.positions.append(self.producer, "f", step, records)

    def stored(self):
        """Return the events that wait."""
        return waiting_events(self.redis, "p")

    def numbers(self):
        return [event["properties"]["n"] for event in self.stored()]

    def ids(self):
        return [event["event_id"] for event in self.stored()]

    def close(self):
        self._client.close()


@pytest.fixture
def start(redis):
    """Make importers, each as if it were a process of its own."""
    importers = []

    def make(client=redis, **options):
        importers.append(Importer(client, **options))
        return importers[-1]

    yield make
    for importer in importers:
        importer.close()


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
    chunks_left = iter(range(dies_after - 1))

    def die():
        if next(chunks_left, None) is None:
            raise KilledError

    with pytest.raises(KilledError):
        importer.run(data, watch=Seen(on_progress=die), **options)


@pytest.mark.parametrize("dies_after", [1, 2, 3])
def test_an_interrupted_import_continues_where_it_was(start, dies_after):
    data = rows(*range(3500))
    run_until_killed(start(), data, dies_after)
    after = start()

    assert after.run(data).lines_before == dies_after * APPEND_RECORDS_MAX
    assert after.numbers() == list(range(3500))


def test_a_row_has_the_same_id_on_every_run(importer, redis):
    """From project, name and line alone: it is `uuid5`, which anybody can compute."""
    data = rows(1, 2) + b"\n" + rows(3) + rows(4, event_id="given")
    namespace = uuid.UUID("5f1d9a52-7c1e-4d0e-9a0e-3f6f6a1b8c2d")
    for name in ("f", "f", "other"):
        redis.flushdb()
        importer.run(data, name)

        computed = [str(uuid.uuid5(namespace, f"p\0{name}\0{n}")) for n in (1, 2, 4)]
        assert importer.ids() == [*computed, "given"]


def test_a_repeated_step_is_found_stored(importer, redis):
    """A reply was lost: only a repeated call can tell whether the chunk was stored."""
    step = Step(None, Position(3, "a"))

    replies = [importer.append(step, 3) for _ in range(2)]

    assert [reply is ALREADY_STORED for reply in replies] == [False, True]
    assert redis.llen(KEYS.lane("track").waiting) == 3
    assert importer.positions.find("f") == (3, "a")


STEPS = {
    "a first one": Step(None, Position(3, "c")),
    "one behind": Step(Position(1, "a"), Position(3, "c")),
    "another file": Step(Position(2, "x"), Position(3, "c")),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_a_step_from_elsewhere_stores_nothing(importer, redis, step):
    importer.append(Step(None, Position(2, "b")), 2)
    with pytest.raises(ImportRefused, match="another import of this name"):
        importer.append(step, 1)

    assert redis.llen(KEYS.lane("track").waiting) == 2
    assert importer.positions.find("f") == (2, "b")


class Cutter(ThreadingTCPServer):
    """Forwards to Redis; of every third large request it loses the reply, or the request."""

    def __init__(self, redis_url, lost):
        super().__init__(("127.0.0.1", 0), None)
        self._target = Redis.from_url(redis_url).connection_pool.connection_kwargs["port"]
        self._lost = lost
        self.requests = self.cuts = 0
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def finish_request(self, near, _):
        with socket.create_connection(("127.0.0.1", self._target)) as far:
            self._forward(near, far)

    def _forward(self, near, far):
        size = 0
        while True:
            ready, _, _ = select.select([near, far], [], [])
            source = ready[0]
            data = source.recv(1 << 16)
            if not data:
                return
            if source is near:
                was_large, size = size > LARGE, size + len(data)
                self.requests += size > LARGE and not was_large
            is_cut = size > LARGE and self.requests % 3 == 0
            if is_cut and (source is far or self._lost == "request"):
                self.cuts += 1
                return
            (far if source is near else near).sendall(data)
            size = 0 if source is far else size


@pytest.mark.parametrize("lost", ["request", "reply"])
def test_a_lost_request_or_reply_repeats_and_loses_nothing(start, redis, redis_url, lost):
    redis.script_load(Script("append").text)
    proxy = Cutter(redis_url, lost)
    client = Redis(port=proxy.server_address[1], socket_timeout=20, retry=Retry(NoBackoff(), 0))
    importer, seen = start(client), Seen()
    result = importer.run(rows(*range(6500)), watch=seen)
    importer.close()
    client.close()
    proxy.shutdown()
    proxy.server_close()  # waits for its threads

    assert start(redis).numbers() == list(range(6500))
    assert proxy.cuts >= 2
    assert seen.waits == ["for Redis"] * proxy.cuts
    assert result.stored == 6500


def test_importers_of_one_name_repeat_nothing(start, redis, redis_url):
    """A late importer stores nothing: it is refused, or finds the chunk stored."""
    data = rows(*range(8000))

    def work(importer):
        with contextlib.suppress(ImportRefused):
            importer.run(data)

    clients = [Redis.from_url(redis_url) for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(work, map(start, clients)))
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

    assert after.run(data).lines_before == 1000
    assert after.numbers() == [*range(1500), *range(1500)]


def test_a_bad_row_ends_the_import_before_it_and_its_chunk_is_named(importer):
    seen = Seen()
    data = rows(1) + b'{"event": "e", "user_id": 7}\n' + rows(2) + b"{\n" + rows(3)
    result = importer.run(data, watch=seen)

    assert importer.numbers() == [1]
    assert (result.end, result.lines, result.stored, result.bad) == ("bad", 1, 1, 2)
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
    result = importer.run(data, skip_bad=True, watch=seen)

    assert importer.numbers() == [1, 2]
    assert (result.stored, result.bad, result.lines, result.end) == (2, 2, 4, "finished")
    assert [line[:6] for line in seen.lines] == ["line 2", "line 4"]
    assert importer.run(data, skip_bad=True).stored == 0


def test_rows_of_erased_persons_are_counted_and_the_import_moves_past_them(importer, redis):
    redis.sadd(KEYS.fence, tag("p", "user", "u1"), tag("p", "user", "u3"))
    result = importer.run(rows(1, 2, 3))
    alone = importer.run(rows(1), "alone")

    assert importer.numbers() == [2]
    assert (result.stored, result.suppressed) == (1, 2)
    assert (alone.stored, alone.suppressed, importer.positions.find("alone").lines) == (0, 1, 1)


def test_rows_without_a_timestamp_are_counted(importer):
    result = importer.run(rows(1) + rows(2, timestamp="2020-01-01T00:00:00.000Z"))

    assert result.undated == 1
    assert importer.stored()[1]["timestamp"] == "2020-01-01T00:00:00.000Z"


def test_it_waits_for_room_and_continues(start, redis):
    importer = start(held_bytes_max=200_000)
    drained = []

    def drain():
        drained.extend(importer.numbers())
        redis.delete(KEYS.lane("track").waiting)
        redis.hset(KEYS.counts, "held_bytes", 0)

    seen = Seen(on_wait=drain)
    result = importer.run(rows(*range(3000)), watch=seen)

    assert set(seen.waits) == {"for room in the buffer"}
    assert drained + importer.numbers() == list(range(3000))
    assert result.stored == 3000


def test_without_room_the_position_stays(start):
    importer = start(held_bytes_max=10)
    with pytest.raises(BufferFull):
        importer.append(Step(None, Position(1, "a")), 1)

    assert importer.positions.find("f") is None


def test_a_redis_that_stays_away_ends_the_import(start, monkeypatch):
    """After a minute, here after 0.3 s; the next run finds the stored rows."""
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
def test_a_signal_ends_the_import_with_the_current_chunk(start, held_bytes_max):
    importer = start(held_bytes_max=held_bytes_max)

    def ask():
        importer.stop.signal = 2

    result = importer.run(rows(*range(2500)), watch=Seen(on_progress=ask, on_wait=ask))

    assert result.end == "stopped"
    stored = 1000 if held_bytes_max > 10 else 0
    assert (result.stored, result.lines) == (stored, stored)
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

    assert after.run(data, csv_maps=maps).lines_before == 2 + 2 * 1000 - 1
    assert after.numbers() == list(range(1500))
    assert after.stored()[-1]["user_id"] == "first\nlast 1499"
    with pytest.raises(ImportRefused):
        after.run(b"other\n1\n", csv_maps=[])


def test_rows_before_the_first_unreadable_row_are_stored(importer):
    with pytest.raises(ImportRefused, match="line 3: has a quote"):
        importer.run(b'event\na\n"b"x\nc\n', csv_maps=[])

    assert [event["event"] for event in importer.stored()] == ["a"]


def test_a_check_names_every_bad_row_of_all_chunks_and_needs_no_redis():
    lines = lines_of((rows(*range(1500)) + b"{}\n") * 2)
    encode = RowEncoder("p", "f", BYTES_MAX)
    seen, result = Seen(), ImportResult("f")
    check(ChunkReader(lines, json_rows(lines), encode, skip_bad=True, stop=Stop()), result, seen)

    assert seen.lines == ["line 1501: event: is required", "line 3002: event: is required"]
    assert (result.stored, result.bad, result.end) == (3000, 2, "finished")
