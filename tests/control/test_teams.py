"""Accounts with several members."""

import asyncio

import pytest

from gateway.control.accounts.teams import check_change
from gateway.control.errors import NotPermitted
from gateway.control.mail import Mail
from gateway.infra.clock import SystemClock
from gateway.settings import Mail as MailSettings
from tests.control.desk import Desk
from tests.control.test_auth import Office, Post, office  # noqa: F401  a fixture

OWNER, ADMIN, MEMBER = "owner", "admin", "member"


@pytest.mark.parametrize(
    ("mine", "theirs", "wanted", "is_self", "allowed"),
    [
        (OWNER, OWNER, MEMBER, False, True),
        (OWNER, MEMBER, OWNER, False, True),
        (ADMIN, MEMBER, ADMIN, False, True),
        (ADMIN, ADMIN, MEMBER, False, True),
        (ADMIN, OWNER, MEMBER, False, False),
        (ADMIN, MEMBER, OWNER, False, False),
        (ADMIN, OWNER, None, False, False),
        (MEMBER, MEMBER, None, True, True),
        (MEMBER, MEMBER, OWNER, True, False),
    ],
)
def test_nobody_reaches_above_their_own_role(mine, theirs, wanted, is_self, allowed):
    if allowed:
        check_change(mine=mine, theirs=theirs, wanted=wanted, is_self=is_self)
    else:
        with pytest.raises(NotPermitted):
            check_change(mine=mine, theirs=theirs, wanted=wanted, is_self=is_self)


async def test_whoever_is_invited_joins_once_and_nobody_else(office: Office):  # noqa: F811
    owner, guest, thief = [await office.person() for _ in range(3)]
    made = await owner.post("/team/invitations", {"email": guest.email.upper(), "role": "admin"})
    again = await owner.post("/team/invitations", {"email": guest.email})
    await office.letters()
    token = {"token": office.post.token(guest.email)}

    stolen = await thief.post("/team/invitations/accept", token)
    answers = await asyncio.gather(*(guest.post("/team/invitations/accept", token) for _ in range(3)))
    members = (await owner.get("/team/members")).json["data"]

    assert (made.status, again.status, again.json["code"]) == (200, 409, "invited")
    assert (stolen.status, stolen.json["code"]) == (403, "other_address")
    assert sorted(answer.status for answer in answers) == [200, 400, 400]
    assert [(each["user_id"], each["role"]) for each in members] == [
        (owner.user_id, "owner"),
        (guest.user_id, "admin"),
    ]


async def test_a_session_works_in_one_account_at_a_time(desk: Desk):
    ann, bob = await desk.person(), await desk.person()
    await desk.parts.database.execute(
        "insert into memberships (account_id, user_id, role) values ($1, $2, 'member')", ann.account_id, bob.user_id
    )

    switched = await bob.post(f"/teams/{ann.account_id}/switch")

    assert switched.status == 200
    assert (await bob.get("/user/balance")).json["account_id"] == ann.account_id
    assert (await bob.put("/team", {"name": "mine"})).status == 403
    assert [each["role"] for each in (await bob.get("/teams")).json["data"]] == ["owner", "member"]


async def test_whoever_is_removed_is_out_at_once_and_so_are_their_keys(desk: Desk):
    owner = await desk.person()
    member = await desk.person(account_id=owner.account_id, account_role="member")
    key, kept = await member.key(), await owner.key()

    answer = await owner.delete(f"/team/members/{member.user_id}")

    assert answer.status == 200
    assert (await member.get("/user/balance")).status == 401
    assert (await key.get("/user/balance")).status == 401
    assert (await kept.get("/user/balance")).status == 200


async def test_an_account_always_has_an_owner(desk: Desk):
    ann = await desk.person()
    bob = await desk.person(account_id=ann.account_id, account_role="owner")

    answers = await asyncio.gather(
        ann.put(f"/team/members/{bob.user_id}", {"role": "member"}),
        bob.put(f"/team/members/{ann.user_id}", {"role": "member"}),
    )
    owners = "select count(*) from memberships where account_id = $1 and role = 'owner'"

    # Whoever came second was an owner when it asked; that the account has one left is what counts.
    assert sorted(answer.status for answer in answers) in ([200, 409], [200, 403])
    assert await desk.parts.database.fetch_value(owners, ann.account_id) == 1


async def test_a_letter_that_can_not_be_sent_is_tried_again_and_then_given_up(desk: Desk):
    post = Post()
    failures = iter([OSError(), OSError(), None, OSError(), OSError(), OSError(), None])

    async def send(message):
        if (error := next(failures)) is not None:
            raise error
        await post.send(message)

    from gateway.control.mail import Letter

    mail = Mail(MailSettings(), development=False, clock=SystemClock(), send=send, pause_s=0)
    for name in ("one", "two", "three"):
        mail.post(Letter(to=f"{name}@example.com", subject=name, text="x"))
    task = asyncio.ensure_future(mail.deliver_forever())
    await mail.drained()
    task.cancel()

    assert [letter["Subject"] for letter in post.letters] == ["one", "three"]
