"""Results that must not be lost while a store is away for a moment."""

import pytest

from mm_tasks.client.backoff import record_with_retry


class Store:
    """Fails with these errors, one a call, and then succeeds."""

    def __init__(self, *errors):
        self.errors = list(errors)

    def record(self):
        if self.errors:
            raise self.errors.pop(0)
        return "recorded"


def test_a_result_is_recorded_once_the_store_is_back():
    store = Store(ConnectionError(), TimeoutError())

    assert record_with_retry(store.record, (ConnectionError, TimeoutError), 60) == "recorded"


def test_another_error_and_a_store_that_stays_away_are_raised():
    with pytest.raises(ValueError, match="a bug"):
        record_with_retry(Store(ValueError("a bug")).record, (ConnectionError,), 60)
    with pytest.raises(ConnectionError):
        record_with_retry(Store(*[ConnectionError()] * 5).record, (ConnectionError,), 0)
