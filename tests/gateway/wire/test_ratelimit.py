"""Durations and retry hints in headers."""

import pytest

from gateway.wire.ratelimit import format_duration, parse_duration, retry_after


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, b"0s"),
        (-3, b"0s"),
        (0.012, b"12ms"),
        (0.0001, b"1ms"),
        (0.9999, b"1s"),
        (1, b"1s"),
        (1.5, b"1.5s"),
        (1.234, b"1.234s"),
        (59.9991, b"1m0s"),
        (360, b"6m0s"),
        (3723, b"1h2m3s"),
        (86400, b"24h0m0s"),
        (7.1, b"7.1s"),
        (100, b"1m40s"),
        (10.0, b"10s"),
        (20.2, b"20.2s"),
    ],
)
def test_durations_are_written_as_go_writes_them(seconds: float, text: bytes):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"12ms", 0.012),
        (b"1s", 1),
        (b"1.5s", 1.5),
        (b"6m0s", 360),
        (b"1h2m3s", 3723),
        (b"2m59.56s", 179.56),
        (b"24h0m0s", 86400),
        (b"250us", 0.00025),
        ("5µs".encode(), 5e-6),
        (b"100ns", 1e-7),
        (b" 7 ", 7),
        (b"0.5", 0.5),
    ],
)
def test_durations_are_read(text: bytes, seconds: float):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", [b"", b"-1", b"soon", b"1x", b"s", b"1s2", b"nan", b"inf", b"1e9", b"9" * 60, b"1s" * 99]
)
def test_what_is_no_duration_is_none(text: bytes):
    assert parse_duration(text) is None


DATE = (b"date", b"Wed, 21 Oct 2026 07:28:00 GMT")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([], None),
        ([(b"retry-after", b"20")], 20),
        ([(b"retry-after", b"0.5")], 0.5),
        ([(b"retry-after", b"20"), (b"retry-after-ms", b"1500")], 1.5),
        ([(b"retry-after", b"20"), (b"retry-after-ms", b"x")], 20),
        ([(b"retry-after", b"Wed, 21 Oct 2026 07:29:30 GMT"), DATE], 90),
        ([(b"retry-after", b"Wed, 21 Oct 2026 07:20:00 GMT"), DATE], 0),
        ([(b"retry-after", b"Wed, 21 Oct 2026 07:29:30 GMT")], None),
        ([(b"retry-after", b"tomorrow"), DATE], None),
        ([(b"retry-after", b"\xff"), DATE], None),
        ([(b"retry-after", b"Wed, 21 Oct 2026 07:29:30"), DATE], None),
    ],
)
def test_retry_hints_are_read(headers: list[tuple[bytes, bytes]], seconds: float | None):
    assert retry_after(headers) == seconds
