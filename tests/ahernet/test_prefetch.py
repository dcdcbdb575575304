import threading

import pytest

from ahernet.prefetch import read_ahead


def _reading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahernet-read")]


def test_results_come_in_order_with_their_keys():
    with read_ahead(lambda key: key * key, range(20)) as results:
        assert list(results) == [(key, key * key) for key in range(20)]
    assert not _reading_threads()


def test_reading_runs_ahead_but_no_further_than_asked():
    read, two_ahead = [], threading.Event()

    def note(key):
        read.append(key)
        if key == 2:
            two_ahead.set()
        return key

    with read_ahead(note, range(100), ahead=2) as results:
        assert next(results) == (0, 0)
        assert two_ahead.wait(5)
    assert read == [0, 1, 2]


def test_reading_nothing_ahead_is_refused():
    with pytest.raises(ValueError, match="ahead: expected at least 1, got 0"), read_ahead(str, range(3), ahead=0):
        pass


def test_leaving_early_stops_the_thread():
    def start_and_stop():
        with read_ahead(lambda key: key, range(1000)) as results:
            next(results)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start_and_stop()
    assert not _reading_threads()


def test_an_exception_is_raised_where_its_key_is_due():
    def read(key):
        if key == 3:
            raise ValueError("key 3")
        return key

    got = []
    with pytest.raises(ValueError, match="key 3"), read_ahead(read, range(10)) as results:
        got.extend(key for key, _ in results)
    assert got == [0, 1, 2]
    assert not _reading_threads()


def test_nothing_to_read_is_an_empty_iterator():
    with read_ahead(lambda key: key, []) as results:
        assert list(results) == []
