"""The pages that letters lead to: they are there, load nothing, and ask for what there is."""

import hashlib
import re
from base64 import b64encode

import pytest

from gateway.control.accounts import letters
from gateway.control.app import ROUTES
from gateway.control.parts import find_url
from gateway.settings import Control, Server, Settings
from tests.control.desk import Desk

LETTERS = {
    "verify": letters.verification("a@example.com", "the-token", url="http://gateway"),
    "reset": letters.reset("a@example.com", "the-token", url="http://gateway"),
    "join": letters.invitation("a@example.com", "the-token", account="ours", url="http://gateway"),
}


@pytest.mark.parametrize("name", LETTERS)
async def test_what_a_letter_links_to_is_there(desk: Desk, name: str):
    [link] = re.findall(r"http://gateway(\S+)", LETTERS[name].text)
    path, _, fragment = link.partition("#")

    page = await desk.nobody.get(path)

    assert page.status == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert fragment == "token=the-token"
    assert f'<form id="{name}">'.encode() in page.body


@pytest.mark.parametrize("name", LETTERS)
async def test_a_page_runs_its_own_script_and_nothing_else(desk: Desk, name: str):
    page = await desk.nobody.get(f"/console/{name}")
    text, policy = page.body.decode(), page.headers["content-security-policy"]

    for kind in ("style", "script"):
        [inside] = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        digest = b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert page.headers["referrer-policy"] == "no-referrer"
    assert not re.findall(r'(?:src|href)="', text)


@pytest.mark.parametrize(
    ("server", "control", "url"),
    [
        (Server(port=1234), Control(), "http://127.0.0.1:1234"),
        (Server(port=1234, host="0.0.0.0"), Control(), "http://127.0.0.1:1234"),
        (Server(port=1234, host="::"), Control(), "http://[::1]:1234"),
        (Server(port=0), Control(), ""),
        (Server(port=1234, development=False), Control(), ""),
        (Server(port=1234), Control(url="https://x.example/y"), "https://x.example/y"),
    ],
)
def test_where_letters_lead(server: Server, control: Control, url: str):
    assert find_url(Settings(server=server, control=control)) == url


async def test_a_first_letter_in_development_leads_to_this_machine(desk: Desk):
    sent = []
    desk.parts.mail.post = sent.append  # type: ignore[method-assign]  # a test's

    await desk.nobody.post("/auth/register", {"email": "first@example.com", "password": "correct horse battery"})

    assert f"http://127.0.0.1:{desk.settings.server.port}/console/verify#token=" in sent[0].text


def test_what_the_script_asks_for_is_there():
    from gateway.control import pages

    asked = set(re.findall(r"ask\('(\w+)', '([^']+)'", pages._SCRIPT))
    declared = {(route.method, path) for route in ROUTES for path in route.paths}

    assert len(asked) == 5
    assert asked <= declared
