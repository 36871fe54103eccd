"""Letters, to a real SMTP server."""

import asyncio
import contextlib
import logging

import pytest
from aiosmtpd.smtp import SMTP

from gateway.control.mail import Letter, Mail
from gateway.errors import Overloaded
from gateway.infra.clock import SystemClock
from gateway.settings import Mail as MailSettings

LETTER = Letter(to="ann@example.com", subject="Grüße", text="the token: abc-123\n")


class Box:
    """What arrived."""

    def __init__(self) -> None:
        self.envelopes = []
        self.arrived = asyncio.Event()

    async def handle_DATA(self, server, session, envelope) -> str:  # noqa: N802  aiosmtpd's name
        self.envelopes.append(envelope)
        self.arrived.set()
        return "250 OK"


@pytest.fixture
async def running():
    """Runs the delivery of a mail until the test ends."""
    tasks = []
    yield lambda mail: tasks.append(asyncio.ensure_future(mail.deliver_forever()))
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_letter_arrives_as_it_was_written(running):
    box = Box()
    server = await asyncio.get_running_loop().create_server(lambda: SMTP(box), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    mail = Mail(
        MailSettings(host="127.0.0.1", port=port, security="none", sender="Gateway <no-reply@example.com>"),
        development=False,
        clock=SystemClock(),
    )
    running(mail)

    mail.post(LETTER)
    async with asyncio.timeout(20):
        await box.arrived.wait()
        await mail.drained()
    server.close()

    (envelope,) = box.envelopes
    text = envelope.content.decode()
    assert envelope.mail_from == "no-reply@example.com"
    assert envelope.rcpt_tos == ["ann@example.com"]
    assert "Auto-Submitted: auto-generated" in text
    assert "the token: abc-123" in text


@pytest.mark.parametrize(("development", "shown"), [(True, True), (False, False)])
async def test_without_a_server_a_letter_is_shown_in_development_alone(caplog, development, shown):
    caplog.set_level(logging.INFO)
    mail = Mail(MailSettings(), development=development, clock=SystemClock())

    mail.post(LETTER)

    assert ("abc-123" in caplog.text) is shown


async def test_what_cannot_be_sent_says_nothing_of_what_it_was(caplog, running):
    async def fail(message) -> None:
        raise OSError(f"550 {message['To']} abc-123")

    mail = Mail(MailSettings(), development=True, clock=SystemClock(), send=fail, pause_s=0)
    running(mail)

    mail.post(LETTER)
    await mail.drained()

    assert "could not be sent" in caplog.text
    assert "abc-123" not in caplog.text


async def test_no_more_letters_wait_than_there_is_room_for():
    async def wait(message) -> None:
        raise AssertionError("nobody delivers here")

    mail = Mail(MailSettings(queue_max=2), development=True, clock=SystemClock(), send=wait)
    mail.post(LETTER)
    mail.post(LETTER)

    with pytest.raises(Overloaded):
        mail.post(LETTER)
