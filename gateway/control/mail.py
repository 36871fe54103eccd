"""Letters to people: through an SMTP server, or where none is configured, to the log in development and nowhere else.

Rules:
- Nobody waits for a letter: it is queued, within a bound, and tried `TRIES` times. What the queue held is lost when
  the process dies; whoever waits for it asks again.
- What is in a letter opens accounts. It is never logged, but in development, where nothing is behind it and nobody
  would see it otherwise.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Final

import aiosmtplib
import msgspec

from gateway.errors import Overloaded
from gateway.infra.clock import Clock
from gateway.settings import Mail as MailSettings

log = logging.getLogger(__name__)

TRIES: Final = 3
PAUSE_S: Final = 5.0


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody is told."""

    to: str
    subject: str
    text: str


Send = Callable[[EmailMessage], Awaitable[None]]


class Mail:
    """The way out, of one worker."""

    def __init__(
        self,
        settings: MailSettings,
        *,
        development: bool,
        clock: Clock,
        send: Send | None = None,
        pause_s: float = PAUSE_S,
    ) -> None:
        """`send` is how a message leaves, where that is not SMTP."""
        self._settings = settings
        self._development = development
        self._clock = clock
        self._send = send or self._send_smtp
        self._sends = send is not None or bool(settings.host)
        self._pause_s = pause_s
        self._queue: asyncio.Queue[Letter] = asyncio.Queue(settings.queue_max)

    def post(self, letter: Letter) -> None:
        """Take a letter; it leaves by itself.

        Raises:
            Overloaded: too many wait.
        """
        if not self._sends:
            if self._development:
                log.info("a letter to %s: %s\n%s", letter.to, letter.subject, letter.text)
            else:
                log.warning("a letter was not sent: mail.host is not set", extra={"subject": letter.subject})
            return
        try:
            self._queue.put_nowait(letter)
        except asyncio.QueueFull:
            raise Overloaded("No letter can be sent just now.", retry_after_s=60.0) from None

    async def deliver_forever(self) -> None:
        """Send what is posted, one after the other."""
        while True:
            letter = await self._queue.get()
            await self._deliver(letter)
            self._queue.task_done()

    async def drained(self) -> None:
        """Wait until everything posted was sent, or given up."""
        await self._queue.join()

    async def _deliver(self, letter: Letter) -> None:
        message = self._compose(letter)
        for attempt in range(1, TRIES + 1):
            try:
                await self._send(message)
            except (aiosmtplib.SMTPException, OSError, TimeoutError) as error:
                # Of the error only its kind: servers quote addresses.
                facts = {"subject": letter.subject, "attempt": attempt, "error": type(error).__name__}
                log.warning("a letter could not be sent", extra=facts)
                if attempt < TRIES:
                    await asyncio.sleep(self._pause_s * attempt)
            else:
                return

    def _compose(self, letter: Letter) -> EmailMessage:
        message = EmailMessage()
        message["From"] = self._settings.sender
        message["To"] = letter.to
        message["Subject"] = letter.subject
        message["Date"] = formatdate(self._clock.now(), localtime=False)
        domain = self._settings.sender.rpartition("@")[2].rstrip("> ") or "localhost"
        message["Message-ID"] = make_msgid(domain=domain)
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(letter.text)
        return message

    async def _send_smtp(self, message: EmailMessage) -> None:
        settings = self._settings
        await aiosmtplib.send(
            message,
            hostname=settings.host,
            port=settings.port,
            username=settings.user or None,
            password=None if settings.password is None else settings.password.reveal(),
            use_tls=settings.security == "tls",
            start_tls=settings.security == "starttls",
            timeout=settings.timeout_s,
        )
