import asyncio
import io
import logging
import os
import subprocess
import sys
import threading
import time
import warnings

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.infra import logs
from gateway.infra.logs import AccessLog, JsonFormatter, PlainFormatter, Timestamps, configure, redact


class Line(msgspec.Struct):
    number: int
    text: str = ""


def record(message: object, *args: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("gateway.test", logging.WARNING, __file__, 1, message, args, None)
    vars(made).update(extra)
    made.created = 1763840647.1234
    return made


def numbers(data: bytes) -> list[int]:
    return [line.number for line in msgspec.json.Decoder(Line).decode_lines(data)]


async def until(condition) -> None:
    """What a thread does can't be awaited."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# -- diagnostics -------------------------------------------------------------------------------------------------


def test_a_line_has_its_message_and_the_extra_fields():
    line = JsonFormatter().format(record("took %d ms", 5, request_id="r1", attempts=[1, 2]))

    assert msgspec.json.decode(line) == {
        "time": "2025-11-22T19:44:07.123Z",
        "level": "warning",
        "logger": "gateway.test",
        "message": "took 5 ms",
        "request_id": "r1",
        "attempts": [1, 2],
    }


def test_an_exception_is_one_field_on_one_line():
    made = record("failed")
    try:
        raise RuntimeError("inner")
    except RuntimeError:
        made.exc_info = sys.exc_info()

    line = JsonFormatter().format(made)

    assert "\n" not in line
    assert msgspec.json.decode(line)["exception"].endswith("RuntimeError: inner")


@pytest.mark.parametrize(
    ("message", "args", "extra"),
    [
        ("%d", ("not a number",), {}),
        ("%s %s", ("one",), {}),
        ("%(a)s", ({"b": 1},), {}),
        ("lone surrogate \ud800", (), {}),
        ("fields", (), {"a": object(), "b": {1, 2}, "c": {(1, 2): 3}, "d": 2**70, "e": float("nan"), "f": b"\xff"}),
    ],
)
def test_no_message_is_too_odd_to_be_logged(message, args, extra):
    assert msgspec.json.decode(JsonFormatter().format(record(message, *args, **extra)))["level"] == "warning"
    assert "warning" in PlainFormatter().format(record(message, *args, **extra))


def test_a_plain_line_is_for_reading():
    line = PlainFormatter().format(record("took %d ms", 5, request_id="r1"))

    assert line == "19:44:07 warning  gateway.test  took 5 ms  request_id=r1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("key gw_live_Ab3_dEf-9xyz refused", "key gw_live_*** refused"),
        ("gw_test_a gw_dev_b gw_staging_c", "gw_test_*** gw_dev_*** gw_staging_***"),
        ("sent sk-proj-abc_DEF123 on", "sent sk-*** on"),
        ("key=AIzaSyA-1234567890abcdefghij", "key=AIza***"),
        ("Authorization: Bearer abc.def-ghi==", "Authorization: Bearer ***"),
        ("authorization: basic dXNlcjpwYXNz", "authorization: basic ***"),
        ("redis://user:hunter2@host:6379/0 down", "redis://user:***@host:6379/0 down"),
        ("postgresql://:hunter2@host/db", "postgresql://:***@host/db"),
        ("a task-list, disk-space, the bearer of news", "a task-list, disk-space, the bearer of news"),
        ("http://host:80/a@b", "http://host:80/a@b"),
    ],
)
def test_what_looks_like_a_secret_is_struck_out(text, expected):
    assert redact(text) == expected


def test_secrets_are_struck_out_of_fields_and_tracebacks():
    made = record("m", headers={"authorization": "Bearer abcdefghij"})
    try:
        raise RuntimeError("gw_live_secretsecret")
    except RuntimeError:
        made.exc_info = sys.exc_info()

    for formatter in (JsonFormatter(), PlainFormatter()):
        text = formatter.format(made)
        assert "secretsecret" not in text
        assert "abcdefghij" not in text


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_a_redacted_line_is_still_json(text):
    mixed = f"{text} redis://a:{text}@h gw_live_{text} Bearer {text}"

    assert "message" in msgspec.json.decode(JsonFormatter().format(record("%s", mixed)))


@pytest.mark.parametrize("piece", ["a.", "a-", "://", "a://b:", "sk-", "gw_live_", "bearer ", "AIza", ":", "@"])
def test_striking_out_takes_time_in_proportion(piece):
    def processor_s(size: int) -> float:
        text = piece * (size // len(piece))
        began_s = time.process_time()  # of this process: a busy machine does not show in it
        redact(text)
        return time.process_time() - began_s

    few_s = min(processor_s(20_000) for _ in range(5))
    many_s = processor_s(1_000_000)

    # Fifty times as much: a quadratic pattern takes two and a half thousand times as long.
    assert many_s < 500 * max(few_s, 1e-4)


@pytest.fixture
def restored_logging():
    """Whatever `configure` does to the process's loggers, undone."""
    names = [*logs._TAMED, *logs._SILENCED]
    loggers = [logging.getLogger(), *map(logging.getLogger, names)]
    before = [(each, each.level, each.handlers[:], each.propagate, each.disabled) for each in loggers]
    with warnings.catch_warnings():
        yield
        logging.captureWarnings(capture=False)
    for each, level, handlers, propagate, disabled in before:
        each.setLevel(level)
        each.handlers[:] = handlers
        each.propagate = propagate
        each.disabled = disabled


def test_the_whole_program_logs_to_one_stream_at_one_level(restored_logging):
    stream = io.StringIO()
    configure(level="debug", stream=io.StringIO())
    configure(level="info", stream=stream)

    logging.getLogger("gateway.x").debug("too fine")
    logging.getLogger("gateway.x").info("seen", extra={"a": 1})
    logging.getLogger("uvicorn.error").info("Started server process")
    logging.getLogger("uvicorn.error").error("broken")
    logging.getLogger("uvicorn.access").error("GET /?key=secret")
    logging.getLogger("asyncio").info("Using selector")
    logging.getLogger("httpx2").info("GET https://host/?key=secret")

    lines = [msgspec.json.decode(line) for line in stream.getvalue().splitlines()]
    assert [line["message"] for line in lines] == ["seen", "broken"]
    assert lines[0]["a"] == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_plain_lines(restored_logging):
    terminal = Terminal()
    configure(level=logging.INFO, stream=terminal)

    logging.getLogger("gateway.x").info("seen")

    assert terminal.getvalue().endswith("info     gateway.x  seen\n")


@given(st.floats(0, 4e9), st.floats(0, 3))
def test_times_are_those_of_the_standard_library(now, step):
    stamps = Timestamps()
    for moment in (now, now + step, now):
        whole, milliseconds = divmod(int(moment * 1000), 1000)
        expected = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{milliseconds:03d}Z"
        assert stamps.format(moment) == expected


# -- the access log ----------------------------------------------------------------------------------------------


async def test_lines_arrive_in_order_without_being_asked_for(tmp_path):
    path = tmp_path / "access.log"
    access = AccessLog(str(path), flush_s=0.01)

    for number in range(150):
        access.write(Line(number))

    await until(lambda: numbers(path.read_bytes()) == list(range(150)))
    access.close()
    assert access.dropped == 0


async def test_close_writes_what_is_left(tmp_path):
    path = tmp_path / "access.log"
    access = AccessLog(str(path), flush_s=60)
    access.write(Line(1))

    access.close()

    assert numbers(path.read_bytes()) == [1]


async def test_no_target_is_no_log():
    access = AccessLog("")
    access.write(Line(1))
    access.flush()
    access.reopen()
    access.close()
    assert access.dropped == 0


async def test_a_rotated_file_is_opened_anew(tmp_path):
    path, rotated = tmp_path / "access.log", tmp_path / "access.log.1"
    access = AccessLog(str(path), flush_s=60)
    access.write(Line(1))
    path.rename(rotated)

    access.reopen()
    access.write(Line(2))
    access.close()

    assert numbers(rotated.read_bytes()) == [1]
    assert numbers(path.read_bytes()) == [2]


async def test_a_log_whose_directory_went_away_keeps_its_file_and_goes_on(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    access = AccessLog(str(folder / "access.log"), flush_s=60)
    folder.rename(tmp_path / "gone")

    access.reopen()
    access.write(Line(1))
    access.close()

    assert numbers((tmp_path / "gone" / "access.log").read_bytes()) == [1]


async def test_a_record_that_json_cannot_hold_costs_only_itself(tmp_path):
    path = tmp_path / "access.log"
    access = AccessLog(str(path), flush_s=60)

    for number, text in enumerate(["a", "\ud800", "c"]):
        access.write(Line(number, text))
    access.close()

    assert numbers(path.read_bytes()) == [0, 2]
    assert access.dropped == 1


async def test_a_reader_that_stopped_stops_nobody(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    access = AccessLog(str(path), backlog_bytes_max=256 * 1024)
    longest_s = 0.0
    loop = asyncio.get_running_loop()

    # Ten times what the pipe and the backlog hold together.
    for number in range(32_000):
        before_s = loop.time()
        access.write(Line(number, "x" * 100))
        longest_s = max(longest_s, loop.time() - before_s)
        if number % 1000 == 0:
            await asyncio.sleep(0)

    assert access.dropped > 20_000
    assert longest_s < 5

    # The reader wakes up: nothing that was taken on is lost, and every line is whole.
    taken = 32_000 - access.dropped
    seen = b""
    closing = threading.Thread(target=access.close)
    closing.start()
    async with asyncio.timeout(20):
        while closing.is_alive() or len(seen.splitlines()) < taken:
            try:
                seen += os.read(reader, 1 << 20)
            except BlockingIOError:
                await asyncio.sleep(0.01)
    os.close(reader)
    closing.join()
    assert len(numbers(seen)) == taken
    assert numbers(seen) == sorted(numbers(seen))


async def test_a_reader_that_left_costs_lines_and_nothing_else(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    access = AccessLog(str(path), flush_s=0.01)
    os.close(reader)

    for number in range(100):
        access.write(Line(number))

    await until(lambda: access.dropped == 100)
    access.close()


SHARED_PIPE = """
import asyncio, msgspec, sys
from gateway.infra.logs import AccessLog

class Line(msgspec.Struct):
    number: int
    text: str

async def main():
    access = AccessLog("-")
    for number in range(3000):
        access.write(Line(number, sys.argv[1] * 150))
    access.close()

asyncio.run(main())
"""


def test_workers_that_share_standard_output_do_not_tear_each_others_lines():
    read_end, write_end = os.pipe()
    workers = [
        subprocess.Popen([sys.executable, "-c", SHARED_PIPE, name], stdout=write_end) for name in ("a", "b", "c")
    ]
    os.close(write_end)

    with open(read_end, "rb") as pipe:  # noqa: PTH123
        lines = msgspec.json.Decoder(Line).decode_lines(pipe.read())

    assert [worker.wait() for worker in workers] == [0, 0, 0]
    for name in ("a", "b", "c"):
        assert [line.number for line in lines if line.text == name * 150] == list(range(3000))
