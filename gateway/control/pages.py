"""The pages that letters lead to: confirm an address, set a new password, join an account.

What opens accounts is behind the `#` of a link, so it is in no log and in no `referer`; a script of a few lines reads
it and asks this gateway, which is all it may do: it is allowed by its hash, as is the style, and nothing is loaded
from anywhere. Nothing happens by opening a page alone, since programs open links as well: a person presses a button.
"""

import hashlib
from base64 import b64encode
from typing import Final

from gateway.control.access import PUBLIC
from gateway.control.route import Call, Nothing, Raw, Route

_STYLE: Final = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:24rem;margin:4rem auto;padding:0 1rem}
label{display:block;margin:.8rem 0}input{font:inherit;display:block;width:100%;padding:.4rem;box-sizing:border-box}
button{font:inherit;padding:.4rem 1.2rem}[hidden]{display:none}
"""
#: Paths are relative, so that a gateway may live below a path of its host.
_SCRIPT: Final = """
'use strict';
const form = document.querySelector('form'), said = document.querySelector('[role=status]');
const token = new URLSearchParams(location.hash.slice(1)).get('token') || '';
const ask = async (method, path, body, headers) => {
  const answer = await fetch('..' + path, {
    method, headers: {'content-type': 'application/json', ...headers}, body: body && JSON.stringify(body)});
  const said = await answer.json();
  if (answer.ok) return said;
  throw new Error(typeof said.detail === 'string' ? said.detail : said.detail.map(each => each.msg).join(' '));
};
const steps = {
  verify: () => ask('POST', '/auth/verify-email', {token}),
  reset: fields => ask('POST', '/auth/reset-password', {token, password: fields.password}),
  join: async fields => {
    const session = await ask('POST', '/auth', {email: fields.email, password: fields.password});
    const headers = {authorization: 'Bearer ' + session.session_token};
    try {
      const team = await ask('POST', '/team/invitations/accept', {token}, headers);
      return {message: 'You are a member of ' + team.name + '.'};
    } finally {
      await ask('DELETE', '/auth/session', undefined, headers).catch(() => {});
    }
  },
};
form.addEventListener('submit', async event => {
  event.preventDefault();
  form.querySelector('button').disabled = true;
  try {
    said.textContent = (await steps[form.id](Object.fromEntries(new FormData(form)))).message;
    form.hidden = true;
  } catch (error) {
    said.textContent = error.message;
    form.querySelector('button').disabled = false;
  }
});
if (!token) { form.hidden = true; said.textContent = 'This link is not whole: open it as it is in the letter.'; }
"""


def _hash(text: str) -> str:
    return "sha256-" + b64encode(hashlib.sha256(text.encode()).digest()).decode()


_POLICY: Final = (
    f"default-src 'none'; style-src '{_hash(_STYLE)}'; script-src '{_hash(_SCRIPT)}'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = (
    ("content-security-policy", _POLICY),
    ("referrer-policy", "no-referrer"),
    ("cache-control", "no-store"),
)
_EMAIL: Final = '<label>Address<input name="email" type="email" autocomplete="username" required></label>'
_PASSWORD: Final = '<label>{}<input name="password" type="password" autocomplete="{}" required></label>'  # noqa: S105
#: Name in the path: heading, fields, what the button says.
_PAGES: Final = {
    "verify": ("Confirm your address", "", "Confirm"),
    "reset": ("Set a new password", _PASSWORD.format("New password", "new-password"), "Set it"),
    "join": ("Join an account", _EMAIL + _PASSWORD.format("Password", "current-password"), "Join"),
}


def _render(name: str) -> bytes:
    heading, fields, button = _PAGES[name]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{heading}</title><style>{_STYLE}</style></head><body><h1>{heading}</h1>"
        f'<form id="{name}">{fields}<button>{button}</button></form><p role="status"></p>'
        f"<script>{_SCRIPT}</script></body></html>"
    ).encode()


async def show_verification(call: Call[Nothing, Nothing]) -> Raw:
    """Where a letter leads that proves an address."""
    return Raw(_render("verify"), media_type="text/html; charset=utf-8", headers=_HEADERS)


async def show_reset(call: Call[Nothing, Nothing]) -> Raw:
    """Where a letter leads that sets a new password."""
    return Raw(_render("reset"), media_type="text/html; charset=utf-8", headers=_HEADERS)


async def show_invitation(call: Call[Nothing, Nothing]) -> Raw:
    """Where a letter leads that asks somebody to join an account."""
    return Raw(_render("join"), media_type="text/html; charset=utf-8", headers=_HEADERS)


ROUTES: Final = tuple(
    Route(
        method="GET",
        path=f"/console/{name}",
        handler=handler,
        access=PUBLIC,
        summary=_PAGES[name][0],
        tag="auth",
        media_type="text/html",
        hidden=True,
    )
    for name, handler in (("verify", show_verification), ("reset", show_reset), ("join", show_invitation))
)
