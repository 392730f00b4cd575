"""The circuit breaker by itself, on a clock of the test."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from mm_tasks.connections.breaker import Away, Breaker


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return Breaker(1.0, clock=clock)


def admits(breaker):
    try:
        breaker.check()
    except Away:
        return False
    return True


def test_it_admits_every_call_until_one_failed(breaker):
    assert all(admits(breaker) for _ in range(3))
    breaker.failed()

    assert not admits(breaker)


def test_while_open_it_admits_one_probe_a_second(breaker, clock):
    breaker.failed()
    admitted = []
    for _ in range(40):
        clock.now_s += 0.1
        admitted.append(admits(breaker))

    assert admitted.count(True) in {3, 4}


def test_a_probe_that_failed_is_followed_by_the_next_a_second_later(breaker, clock):
    """A probe takes as long as its timeout. The second begins after it."""
    breaker.failed()
    clock.now_s += 1.1
    assert admits(breaker)
    clock.now_s += 0.9
    breaker.failed()
    clock.now_s += 0.5
    assert not admits(breaker)
    clock.now_s += 0.6

    assert admits(breaker)


def test_an_answer_closes_it(breaker):
    breaker.failed()
    breaker.answered()

    assert all(admits(breaker) for _ in range(3))


def test_the_error_says_for_how_long_redis_has_been_away(breaker, clock):
    """Failed probes do not begin the outage anew."""
    breaker.failed()
    clock.now_s += 7
    breaker.failed()
    clock.now_s += 0.5
    with pytest.raises(Away, match="away for 8 s"):
        breaker.check()


def test_of_many_threads_one_is_the_probe(breaker, clock):
    breaker.failed()
    clock.now_s += 2
    with ThreadPoolExecutor(16) as threads:
        admitted = list(threads.map(lambda _: admits(breaker), range(400)))

    assert sum(admitted) == 1
