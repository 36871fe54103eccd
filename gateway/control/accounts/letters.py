"""What people are written. Plain text; a link, where it is known where to, and the token beside it for
programs.
"""

from typing import Final
from urllib.parse import quote

from gateway.control.mail import Letter

_NOT_YOU: Final = "If this was not you, do nothing: without the token, nothing happens."


def verification(to: str, token: str, *, url: str) -> Letter:
    """To prove that an address is somebody's."""
    return Letter(
        to=to,
        subject="Confirm your address",
        text=f"Please confirm that this address is yours:\n\n{_link(url, 'verify', token)}\n\n{_NOT_YOU}\n",
    )


def reset(to: str, token: str, *, url: str) -> Letter:
    """To set a new password."""
    text = f"Somebody, you perhaps, wants to set a new password:\n\n{_link(url, 'reset', token)}\n\n{_NOT_YOU}\n"
    return Letter(to=to, subject="Set a new password", text=text)


def password_changed(to: str) -> Letter:
    """After it happened, in case it was somebody else."""
    text = "Your password was changed, and every other session was ended. If it was not you, set a new one.\n"
    return Letter(to=to, subject="Your password was changed", text=text)


def address_taken(to: str) -> Letter:
    """To whoever has the address that somebody wanted to register."""
    text = (
        "Somebody, you perhaps, wanted to make an account with this address. There is one already: sign in, or ask "
        "for a new password.\n\nIf this was not you, do nothing: nothing was changed.\n"
    )
    return Letter(to=to, subject="You have an account already", text=text)


def welcome(to: str) -> Letter:
    """Once, when an account is made."""
    text = "Your account is ready. Keys are shown once, when they are made; nobody can read them again.\n"
    return Letter(to=to, subject="Welcome", text=text)


def invitation(to: str, token: str, *, account: str, url: str) -> Letter:
    """To work in somebody's account."""
    text = f"You are asked to join {account!r}:\n\n{_link(url, 'join', token)}\n\n{_NOT_YOU}\n"
    return Letter(to=to, subject="You are asked to join an account", text=text)


def _link(url: str, page: str, token: str) -> str:
    if not url:
        return f"The token: {token}"
    return f"{url.rstrip('/')}/console/{page}#token={quote(token)}\n\nThe token by itself: {token}"
