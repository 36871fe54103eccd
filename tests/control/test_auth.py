"""Coming in: what is answered, what is not told, and who gets in after all."""

import asyncio
import hashlib
import re
from base64 import urlsafe_b64encode

import pytest

from gateway.control.issuers import Issuers
from gateway.control.mail import Mail
from gateway.infra.clock import SystemClock
from gateway.infra.embedded import Stores
from gateway.secret import Secret
from gateway.settings import Control, Identity, Issuer, Settings
from gateway.settings import Mail as MailSettings
from tests.control.desk import Desk
from tests.control.issuer import AUDIENCE, ISSUER, FakeIssuer

PASSWORD = "correct horse battery"
URL = "https://gateway.example.com"


class Post:
    """Letters that were sent."""

    def __init__(self) -> None:
        self.letters = []

    async def send(self, message) -> None:
        self.letters.append(message)

    def token(self, to: str) -> str:
        """What the last letter to somebody proves."""
        last = [letter for letter in self.letters if letter["To"] == to][-1]
        return re.search(r"[Tt]oken[^:\n]*: (\S+)", last.get_content())[1]


class Office(Desk):
    """A desk with its post and an issuer."""

    def __init__(self, stores: Stores, settings: Settings | None = None) -> None:
        super().__init__(stores, settings)
        self.post = Post()
        self.issuer = FakeIssuer()

    def furnish(self) -> None:
        client = self.issuer.client()
        self._stack.push_async_callback(client.aclose)
        clock = SystemClock()
        self.parts.mail = Mail(MailSettings(), development=True, clock=clock, send=self.post.send)
        self.parts.issuers = Issuers(
            {
                "company": Issuer(issuer=ISSUER, audience=AUDIENCE),
                "privy": Issuer(issuer="privy.io", audience="app-1", kind="privy", client_secret=Secret("s")),
            },
            client=client,
            clock=clock,
        )

    def token(self, **claims) -> str:
        return self.issuer.token(now_s=SystemClock().now(), **claims)

    async def letters(self) -> list:
        await settle(self)
        return self.post.letters


async def settle(office: Office) -> None:
    """Until what goes on after an answer has come to its end."""
    if sending := [task for task in asyncio.all_tasks() if task.get_name() == "send a link"]:
        await asyncio.wait(sending)
    await office.parts.mail.drained()


@pytest.fixture
async def office(people_database, redis_url):
    async with Office(Stores(people_database, redis_url)) as office:
        yield office


def new_email() -> str:
    return f"p{next(numbers)}-{SystemClock().now():.6f}@example.com".replace(".", "-", 1).lower()


numbers = iter(range(1, 10**6))


async def register(office, **fields):
    email = fields.pop("email", None) or new_email()
    answer = await office.nobody.post("/auth/register", {"email": email, "password": PASSWORD, **fields})
    assert answer.status == 200, answer
    return email, answer.json


async def sign_in(office, email, password=PASSWORD, **fields):
    return await office.nobody.post("/auth", {"email": email, "password": password, **fields})


# -- fields that clients read ------------------------------------------------------------------------------------------


async def test_registration_answers_with_what_clients_read(office):
    email, answer = await register(
        office, username=f"name-{new_email()}"[:60], environment_tag="test", key_name="mine"
    )

    assert answer["email"] == email
    assert answer["api_key"].startswith("gw_test_")
    assert answer["environment_tag"] == "test"
    assert answer.keys() >= {
        "user_id",
        "username",
        "email",
        "api_key",
        "credits",
        "environment_tag",
        "scope_permissions",
        "subscription_status",
        "message",
        "timestamp",
    }


async def test_sign_in_answers_with_what_clients_read(office):
    email, made = await register(office)

    answer = (await sign_in(office, email)).json

    assert answer["success"] is True
    assert answer["user_id"] == made["user_id"]
    assert answer["is_new_user"] is False
    assert answer["auth_method"] == "email"
    assert answer["api_key"] is None, "a key is shown once"
    assert answer["privy_user_id"] is None
    assert answer["credits"] == 0.0
    assert answer["display_name"]
    assert answer["session_token"].startswith("gws_")


@pytest.mark.parametrize("path", ["/create", "/admin/create", "/auth/register"])
async def test_old_ways_to_register_work(office, path):
    answer = await office.nobody.post(path, {"email": new_email(), "username": f"u{next(numbers)}{new_email()}"})

    assert answer.status == 200
    assert answer.json["api_key"].startswith("gw_live_")


async def test_the_key_of_a_new_account_works_at_both_planes(office):
    _, made = await register(office)
    headers = {"authorization": f"Bearer {made['api_key']}"}

    balance = await office.nobody.ask("GET", "/user/balance", headers=headers)
    models = await office.nobody.ask("GET", "/v1/models", headers=headers)

    assert balance.json["user_id"] == made["user_id"]
    assert models.status == 200


# -- who gets in -------------------------------------------------------------------------------------------------------


async def test_the_owner_of_a_taken_address_hears_of_it_once(office):
    email, _ = await register(office)
    before = len(await office.letters())

    answers = [await office.nobody.post("/auth/register", {"email": email.upper()}) for _ in range(3)]

    assert [(each.status, each.json["code"]) for each in answers] == [(409, "email_taken")] * 3
    [letter] = (await office.letters())[before:]
    assert (letter["To"], letter["Subject"]) == (email, "You have an account already")


async def test_nobody_asks_for_one_address_without_end(people_database, redis_url):
    settings = Settings(identity=Identity(tries_per_address=3))
    async with Office(Stores(people_database, redis_url), settings) as office:
        known, _ = await register(office)
        unknown = new_email()

        answers = {
            email: [
                await office.nobody.post("/auth/register", {"email": email, "password": "short"}) for _ in range(3)
            ]
            for email in (known, unknown)
        }

    assert [each.status for each in answers[known]] == [422, 422, 429]
    assert [each.status for each in answers[unknown]] == [422, 422, 422]


async def test_nothing_tells_a_wrong_password_from_an_unknown_address(office):
    email, _ = await register(office)

    wrong = await sign_in(office, email, "another horse battery")
    unknown = await sign_in(office, new_email())

    assert (wrong.status, wrong.detail, wrong.json["code"]) == (401, unknown.detail, unknown.json["code"])
    assert unknown.status == 401


async def test_of_many_that_register_one_address_one_does(office):
    email = new_email()

    answers = await asyncio.gather(
        *(office.nobody.post("/auth/register", {"email": email.upper() if n % 2 else email}) for n in range(10))
    )

    assert sorted(answer.status for answer in answers) == [200] + [409] * 9
    assert {answer.json["code"] for answer in answers if answer.status == 409} == {"email_taken"}


async def test_a_name_is_taken_in_any_case(office):
    _, made = await register(office, username=f"Ann{new_email()}"[:50])

    answer = await office.nobody.post("/auth/register", {"email": new_email(), "username": made["username"].upper()})

    assert (answer.status, answer.json["code"]) == (409, "username_taken")


@pytest.mark.parametrize("password", ["short", "aaaaaaaaaaaa", "x" * 129])
async def test_a_weak_password_is_refused(office, password):
    answer = await office.nobody.post("/auth/register", {"email": new_email(), "password": password})

    assert answer.status == 422
    assert answer.detail[0]["loc"] == ["body", "password"]


async def test_tries_are_counted_for_each_address(people_database, redis_url):
    settings = Settings(identity=Identity(tries_per_address=3))
    async with Office(Stores(people_database, redis_url), settings) as office:
        email = new_email()

        statuses = [(await sign_in(office, email)).status for _ in range(4)]
        other = await sign_in(office, new_email())
        last = await sign_in(office, email.upper())

    assert statuses == [401, 401, 401, 429]
    assert other.status == 401
    assert last.status == 429
    assert int(last.headers["retry-after"]) > 0


async def test_tries_are_counted_for_each_client(people_database, redis_url):
    settings = Settings(identity=Identity(tries_per_client=3))
    async with Office(Stores(people_database, redis_url), settings) as office:
        statuses = [(await sign_in(office, new_email())).status for _ in range(4)]

    assert statuses == [401, 401, 401, 429]


async def test_registration_can_be_closed(people_database, redis_url):
    settings = Settings(identity=Identity(registration=False))
    async with Office(Stores(people_database, redis_url), settings) as office:
        answer = await office.nobody.post("/auth/register", {"email": new_email()})
        by_token = await office.nobody.post("/auth", {"token": office.token(sub="closed out")})

    assert (answer.status, answer.json["code"]) == (403, "registration_closed")
    assert (by_token.status, by_token.json["code"]) == (403, "registration_closed")


async def test_an_address_must_be_confirmed_first_where_it_is_asked_for(people_database, redis_url):
    settings = Settings(identity=Identity(verify_email=True))
    async with Office(Stores(people_database, redis_url), settings) as office:
        email, made = await register(office)
        assert made["session_token"] is None
        before = await sign_in(office, email)
        await office.letters()
        proved = await office.nobody.post("/auth/verify-email", {"token": office.post.token(email)})
        after = await sign_in(office, email)

    assert (before.status, before.json["code"]) == (403, "email_not_verified")
    assert proved.status == 200
    assert after.status == 200


# -- new passwords -----------------------------------------------------------------------------------------------------


async def test_a_new_password_is_set_once_by_what_was_in_the_mail(office):
    email, made = await register(office)
    await office.letters()
    await office.nobody.post("/auth/verify-email", {"token": office.post.token(email)})
    session = {"authorization": f"Bearer {made['session_token']}"}
    await office.nobody.ask("POST", "/auth/password-reset", email=email)
    await office.letters()
    token = office.post.token(email)

    answers = await asyncio.gather(
        *(
            office.nobody.post("/auth/reset-password", {"token": token, "password": f"{PASSWORD} {n}"})
            for n in range(4)
        )
    )

    assert sorted(answer.status for answer in answers) == [200, 400, 400, 400]
    winner = [answer.status for answer in answers].index(200)
    assert (await sign_in(office, email, f"{PASSWORD} {winner}")).status == 200
    assert (await sign_in(office, email)).status == 401
    assert (await office.nobody.ask("GET", "/user/profile", headers=session)).status == 401, "sessions end"
    key = {"authorization": f"Bearer {made['api_key']}"}
    assert (await office.nobody.ask("GET", "/user/profile", headers=key)).status == 200, "keys of an owner do not"


async def test_the_answer_is_the_same_for_an_address_that_nobody_has(office):
    email, _ = await register(office)
    await office.letters()
    count = len(office.post.letters)

    known = await office.nobody.post("/auth/password-reset", {"email": email})
    unknown = await office.nobody.post("/auth/password-reset", {"email": new_email()})
    await office.letters()

    assert known.body == unknown.body
    assert known.status == unknown.status == 200
    assert len(office.post.letters) == count + 1


async def test_whoever_registers_anothers_address_loses_it_and_all_keys_to_its_owner(office):
    email, squatter = await register(office)
    await office.nobody.post("/auth/password-reset", {"email": email})
    await office.letters()

    answer = await office.nobody.post(
        "/auth/reset-password", {"token": office.post.token(email), "password": "the owner's own word"}
    )

    assert answer.status == 200
    for credential in (squatter["api_key"], squatter["session_token"]):
        headers = {"authorization": f"Bearer {credential}"}
        assert (await office.nobody.ask("GET", "/user/balance", headers=headers)).status == 401


async def test_no_token_is_stored(office):
    email, made = await register(office)
    await office.letters()
    token = office.post.token(email)
    tables = ("users", "tokens", "sessions", "keys", "audit_log", "idempotency_keys")

    for table in tables:
        text = str([dict(row) for row in await office.parts.database.fetch(f"select * from {table}")])
        for secret in (token, made["session_token"], made["api_key"], PASSWORD):
            assert secret not in text, table


# -- other issuers -----------------------------------------------------------------------------------------------------


async def test_whoever_is_new_by_a_token_is_registered_once(office):
    token = office.token(sub=f"new-{new_email()}", name="Ann")

    first, second = [(await office.nobody.post("/auth", {"token": token})).json for _ in range(2)]

    assert first["is_new_user"] is True
    assert first["api_key"].startswith("gw_live_")
    assert first["display_name"] == "Ann"
    assert second["user_id"] == first["user_id"]
    assert second["is_new_user"] is False
    assert second["api_key"] is None


@pytest.mark.parametrize(("path", "field"), [("/auth", "token"), ("/auth/privy", "privy_access_token")])
async def test_privy_signs_in_as_its_clients_ask_for_it(office, path, field):
    """The body is what pages with Privy send; who it is about, and at which address, Privy says and not the body."""
    email, did = new_email(), f"did:privy:{new_email()}"
    office.issuer.privy_users[did] = {
        "linked_accounts": [{"type": "email", "address": email, "verified_at": 1700000000}]
    }
    token = office.token(iss="privy.io", aud="app-1", sub=did)
    body = {
        "user": {
            "id": "did:privy:somebody-else",
            "created_at": 1700000000,
            "linked_accounts": [{"type": "email", "email": "else@example.com", "verified_at": 1700000000}],
            "mfa_methods": [],
            "has_accepted_terms": True,
            "is_guest": False,
        },
        field: token,
        "refresh_token": None,
        "session_update_action": "set",
        "is_new_user": False,
    }

    first, second = [(await office.nobody.post(path, body)).json for _ in range(2)]

    assert (first["success"], first["is_new_user"], first["auth_method"]) == (True, True, "privy")
    assert (first["privy_user_id"], first["email"], first["credits"]) == (did, email, 0.0)
    assert first["display_name"]
    assert first["api_key"].startswith("gw_live_")
    assert (second["user_id"], second["is_new_user"], second["api_key"]) == (first["user_id"], False, None)


async def test_of_many_first_sign_ins_of_one_person_one_person_is_made(office):
    token = office.token(sub=f"many-{new_email()}", email=new_email(), email_verified=True)

    answers = await asyncio.gather(*(office.nobody.post("/auth", {"token": token}) for _ in range(8)))

    people = {answer.json["user_id"] for answer in answers if answer.status == 200}
    assert len(people) == 1
    assert {answer.status for answer in answers} <= {200, 409}


async def test_a_verified_address_leads_to_who_has_it_verified(office):
    email, made = await register(office)
    await office.letters()
    await office.nobody.post("/auth/verify-email", {"token": office.post.token(email)})

    answer = await office.nobody.post(
        "/auth", {"token": office.token(sub=f"s-{email}", email=email, email_verified=True)}
    )

    assert answer.json["user_id"] == made["user_id"]


async def test_nobody_is_merged_by_an_address_that_nobody_verified(office):
    """The takeover of the reference: an unproved address, or only its first part, led to somebody's account."""
    email, victim = await register(office)
    unproved = await office.nobody.post(
        "/auth", {"token": office.token(sub=f"u-{email}", email=email), "email": email}
    )
    owner = await office.nobody.post(
        "/auth", {"token": office.token(sub=f"o-{email}", email=email, email_verified=True)}
    )

    assert unproved.json["user_id"] != victim["user_id"]
    assert unproved.json["email"] is None
    # The one who proved the address has it; the one who only said so keeps the rest of theirs.
    assert owner.json["user_id"] not in (victim["user_id"], unproved.json["user_id"])
    assert owner.json["email"] == email
    headers = {"authorization": f"Bearer {victim['api_key']}"}
    assert (await office.nobody.ask("GET", "/user/profile", headers=headers)).json["email"] is None


async def test_signing_in_at_the_console_through_an_issuer(people_database, redis_url):
    settings = Settings(control=Control(url=URL))
    async with Office(Stores(people_database, redis_url), settings) as office:
        office.client.cookies.clear()
        name = new_email()
        begun = await office.nobody.ask("GET", "/auth/login/company", next="/console")
        where = dict(httpx_query(begun.headers["location"]))
        cookie = begun.headers["set-cookie"].partition(";")[0]
        office.issuer.codes["code-1"] = office.token(sub=f"c-{new_email()}", nonce=where["nonce"])
        ended = await office.nobody.ask(
            "GET", "/auth/callback/company", headers={"cookie": cookie}, code="code-1", state=where["state"]
        )
        session = dict(each.partition(";")[0].split("=", 1) for each in ended.headers.get_list("set-cookie"))
        page = {"cookie": "; ".join(f"{key}={value}" for key, value in session.items() if value)}
        whoami = await office.nobody.ask("GET", "/auth/session", headers=page)
        unproved = await office.nobody.ask("PUT", "/user/profile", {"name": name}, headers=page)
        page["x-csrf-token"] = whoami.json["csrf_token"]
        renamed = await office.nobody.ask("PUT", "/user/profile", {"name": name}, headers=page)
        office.client.cookies.clear()
        replayed = await office.nobody.ask(
            "GET", "/auth/callback/company", headers={"cookie": cookie}, code="code-1", state=where["state"]
        )
        forged = await office.nobody.ask(
            "GET", "/auth/callback/company", headers={"cookie": cookie}, code="code-1", state="another"
        )

    assert begun.status == 303
    assert where["code_challenge_method"] == "S256"
    assert where["redirect_uri"] == f"{URL}/auth/callback/company"
    assert ended.status == 303, ended
    assert ended.headers["location"] == "/console"
    assert "__Host-gateway_session=gws_" in ended.headers["set-cookie"]
    assert "HttpOnly; Secure" in ended.headers["set-cookie"]
    [verifier] = office.issuer.forms[0]["code_verifier"]
    assert (
        urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=") == where["code_challenge"]
    )
    assert whoami.json["kind"] == "session"
    assert session["__Host-gateway_csrf"] == whoami.json["csrf_token"]
    assert (unproved.status, unproved.json["code"]) == (403, "csrf")
    assert (renamed.status, renamed.json["name"]) == (200, name)
    assert replayed.status == 401
    assert forged.status == 401


@pytest.mark.parametrize(
    "page", ["//evil.example.com", "https://evil.example.com", "/\\evil.example.com", "\u00fc", ""]
)
async def test_nobody_is_sent_elsewhere_after_signing_in(people_database, redis_url, page):
    from gateway.control.accounts.redirects import is_own_page

    assert not is_own_page(page)


# -- sessions ----------------------------------------------------------------------------------------------------------


async def test_a_cookie_alone_changes_nothing(office):
    email, _ = await register(office)
    answer = await sign_in(office, email, session="cookie")
    assert answer.json["session_token"] is None
    cookie = {"cookie": answer.headers["set-cookie"].partition(";")[0]}
    csrf = answer.json["csrf_token"]
    office.client.cookies.clear()

    async def rename(**headers):
        return (await office.nobody.ask("PUT", "/user/profile", {"name": "X"}, headers={**cookie, **headers})).status

    assert (await office.nobody.ask("GET", "/user/profile", headers=cookie)).status == 200
    assert await rename() == 403
    assert await rename(**{"x-csrf-token": "made up"}) == 403
    assert await rename(**{"x-csrf-token": csrf, "origin": "https://evil.example.com"}) == 403
    assert await rename(**{"x-csrf-token": csrf, "origin": "http://gateway"}) == 200
    assert await rename(**{"x-csrf-token": csrf}) == 200


async def test_a_session_that_was_ended_is_over_at_once(office):
    _, made = await register(office)
    headers = {"authorization": f"Bearer {made['session_token']}"}

    assert (await office.nobody.ask("DELETE", "/auth/session", headers=headers)).status == 200
    assert (await office.nobody.ask("GET", "/user/profile", headers=headers)).status == 401


@pytest.mark.parametrize(
    "change", [lambda t: t[:-1] + ("A" if t[-1] != "A" else "B"), lambda t: t[:-5], lambda _: "gws_"]
)
async def test_a_session_that_was_made_up_is_refused(office, change):
    _, made = await register(office)

    answer = await office.nobody.ask(
        "GET", "/user/profile", headers={"authorization": f"Bearer {change(made['session_token'])}"}
    )

    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_the_password_is_changed_by_who_knows_it(office):
    email, made = await register(office)
    headers = {"authorization": f"Bearer {made['session_token']}"}
    other = (await sign_in(office, email)).json["session_token"]

    wrong = await office.nobody.ask(
        "PUT", "/user/password", {"new_password": f"{PASSWORD} 2", "current_password": "no"}, headers=headers
    )
    right = await office.nobody.ask(
        "PUT", "/user/password", {"new_password": f"{PASSWORD} 2", "current_password": PASSWORD}, headers=headers
    )

    assert (wrong.status, right.status) == (403, 200)
    assert (await office.nobody.ask("GET", "/user/profile", headers=headers)).status == 200
    others = {"authorization": f"Bearer {other}"}
    assert (await office.nobody.ask("GET", "/user/profile", headers=others)).status == 401


def httpx_query(url: str):
    from urllib.parse import parse_qsl, urlsplit

    return parse_qsl(urlsplit(url).query)
