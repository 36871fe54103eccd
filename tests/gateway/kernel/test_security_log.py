"""The security log: bounded whoever is refused how often, and exact about what was left out."""

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.kernel import security
from gateway.kernel.security import LINES_ALL_MAX, LINES_MAX, SUBJECTS_MAX, WINDOW_S, SecurityLog


class HandClock:
    """Moved by hand."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def now(self) -> float:
        return self.at_s

    def monotonic(self) -> float:
        return self.at_s


@contextlib.contextmanager
def listening() -> Iterator[list[logging.LogRecord]]:
    """The lines of the security log, as they come."""
    found: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = found.append
    security.log.addHandler(handler)
    try:
        yield found
    finally:
        security.log.removeHandler(handler)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def lines() -> Iterator[list[logging.LogRecord]]:
    with listening() as found:
        yield found


async def test_a_line_has_what_it_is_about_as_fields(clock, lines):
    assert SecurityLog(clock).note("key_misused", "abc", code="ip_not_allowed", client="192.0.2.1")

    [line] = lines
    assert line.name == "gateway.security"
    assert (line.event, line.subject, line.code, line.client) == ("key_misused", "abc", "ip_not_allowed", "192.0.2.1")


async def test_one_subject_gets_so_many_lines_and_then_one_that_counts_the_rest(clock, lines):
    book = SecurityLog(clock)
    written = [book.note("key_misused", "k1", code="x") for _ in range(LINES_MAX + 37)]
    other = book.note("key_misused", "k2", code="x")
    another = book.note("authentication_failed", "k1", code="x")
    assert written == [True] * LINES_MAX + [False] * 37
    assert other
    assert another

    clock.at_s += WINDOW_S
    assert book.note("key_misused", "k1", code="x")

    assert [(line.event, line.subject, line.omitted) for line in lines if hasattr(line, "omitted")] == [
        ("key_misused", "k1", 37)
    ]
    book.close()


async def test_what_was_left_out_is_told_though_nothing_follows(clock, lines):
    book = SecurityLog(clock)
    book.note("authentication_failed", "192.0.2.1", code="x")
    # Just before its end, so that the timer is due at once.
    clock.at_s += WINDOW_S - 0.01
    for _ in range(LINES_MAX):
        book.note("authentication_failed", "192.0.2.1", code="x")

    async with asyncio.timeout(20):
        while not any(hasattr(line, "omitted") for line in lines):  # noqa: ASYNC110  a timer of the loop's does it
            await asyncio.sleep(0.01)

    assert [line.omitted for line in lines if hasattr(line, "omitted")] == [1]


async def test_all_together_are_bounded_too(clock, lines):
    book = SecurityLog(clock)
    for number in range(LINES_ALL_MAX + 500):
        book.note("authentication_failed", f"client {number}", code="x")
    assert len(lines) == LINES_ALL_MAX

    book.close()

    assert [(line.event, line.omitted) for line in lines[LINES_ALL_MAX:]] == [("all", 500)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.floats(0, 30)), max_size=80))
def test_lines_and_what_they_say_was_left_out_are_all_there_was(refusals):
    """Whatever comes when: nothing is lost between the lines."""

    async def run() -> None:
        clock = HandClock()
        book = SecurityLog(clock)
        for subject, pause_s in refusals:
            clock.at_s += pause_s
            book.note("permission_refused", subject, code="x")
        book.close()

    with listening() as found:
        asyncio.run(run())
    assert sum(getattr(line, "omitted", 1) for line in found) == len(refusals)


async def test_subjects_are_bounded(clock):
    book = SecurityLog(clock)
    for number in range(SUBJECTS_MAX + 10):
        book.note("authentication_failed", f"client {number}", code="x")

    assert len(book._windows) <= SUBJECTS_MAX
    book.close()


async def test_the_source_is_who_trusted_proxies_say(clock):
    book = SecurityLog(clock, trusted=(ipaddress.ip_network("10.0.0.0/8"),))
    header = (b"x-forwarded-for", b"203.0.113.9, 10.0.0.7")

    assert book.source_of({"client": ("10.0.0.1", 1), "headers": [header]}) == "203.0.113.9"
    assert book.source_of({"client": ("198.51.100.1", 1), "headers": [header]}) == "198.51.100.1"
    # A unix socket has no other end to name.
    assert book.source_of({"client": None, "headers": []}) == "127.0.0.1"
    assert book.source_of({"client": ("not an address", 1), "headers": []}) == "unknown"
