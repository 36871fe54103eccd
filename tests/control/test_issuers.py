"""Whose word is taken for who somebody is, and whose is not."""

import asyncio

import jwt
import pytest

from gateway.control.errors import SignInNeeded
from gateway.control.issuer import ANSWER_BYTES_MAX, REFETCH_S
from gateway.control.issuers import IssuerAway, Issuers
from gateway.errors import BadRequest
from gateway.settings import Issuer
from tests.control.issuer import AUDIENCE, ISSUER, FakeIssuer


class HandClock:
    """Moved by the test."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def now(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def fake() -> FakeIssuer:
    return FakeIssuer()


@pytest.fixture
async def issuers(fake: FakeIssuer, clock: HandClock):
    async with fake.client() as client:
        yield Issuers({"company": Issuer(issuer=ISSUER, audience=AUDIENCE)}, client=client, clock=clock)


def real_now() -> float:
    # PyJWT reads the machine's clock.
    from gateway.infra.clock import SystemClock

    return SystemClock().now()


async def test_a_genuine_token_says_who_it_is_about(issuers, fake):
    token = fake.token(now_s=real_now(), email="Ann@example.com", email_verified=True, name="Ann")

    claims = await issuers.verify(token)

    assert (claims.issuer, claims.subject, claims.email, claims.name) == (
        ISSUER,
        "subject-1",
        "Ann@example.com",
        "Ann",
    )


@pytest.mark.parametrize("verified", [None, False, "true", 1])
async def test_an_address_that_was_not_verified_does_not_count(issuers, fake, verified):
    claims = await issuers.verify(fake.token(now_s=real_now(), email="ann@example.com", email_verified=verified))

    assert claims.email is None


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "another"},
        {"aud": [AUDIENCE, "another"]},
        {"azp": "another"},
        {"exp": 1},
        {"exp": None},
        {"sub": None},
        {"sub": ""},
        {"iat": None},
        {"nbf": 4_000_000_000},
    ],
)
async def test_what_does_not_fit_is_refused(issuers, fake, claims):
    with pytest.raises(SignInNeeded):
        await issuers.verify(fake.token(now_s=real_now(), **claims))


async def test_another_issuer_is_nobody(issuers, fake):
    with pytest.raises(SignInNeeded) as refused:
        await issuers.verify(fake.token(now_s=real_now(), iss="https://evil.example.com"))

    assert refused.value.code == "unknown_issuer"
    assert fake.asked == []


async def test_a_token_made_with_the_public_key_as_a_secret_is_refused(issuers, fake):
    """The old confusion: HS256 under what everybody can read."""
    await issuers.verify(fake.token(now_s=real_now()))
    public = str(fake._public("one")["x"])
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "x", "iat": int(real_now()), "exp": int(real_now()) + 60}
    forged = jwt.encode(claims, public.ljust(32, "x"), algorithm="HS256", headers={"kid": "one"})
    unsigned = jwt.encode(claims, None, algorithm="none", headers={"kid": "one"})

    for token in (forged, unsigned):
        with pytest.raises(SignInNeeded):
            await issuers.verify(token)


async def test_a_token_of_another_key_is_refused(issuers, fake):
    other = FakeIssuer()
    with pytest.raises(SignInNeeded):
        await issuers.verify(other.token(now_s=real_now()))


async def test_what_is_no_token_is_a_bad_request(issuers):
    for text in ("", "abc", "a.b.c", "\0", "x" * 5000):
        with pytest.raises(BadRequest):
            await issuers.verify(text)


async def test_unknown_key_ids_ask_the_issuer_at_most_once_a_minute(issuers, fake, clock):
    await issuers.verify(fake.token(now_s=real_now()))
    stranger = FakeIssuer()
    stranger.rotate("two")

    for _ in range(50):
        with pytest.raises(SignInNeeded):
            await issuers.verify(stranger.token(kid="two", now_s=real_now()))
    assert fake.asked.count("/keys") == 1

    fake.rotate("two")
    clock.now_s += REFETCH_S + 1
    await issuers.verify(fake.token(kid="two", now_s=real_now()))
    assert fake.asked.count("/keys") == 2


async def test_of_many_at_once_one_asks(issuers, fake):
    await asyncio.gather(*(issuers.verify(fake.token(now_s=real_now())) for _ in range(20)))

    assert fake.asked.count("/keys") == 1


async def test_an_issuer_that_is_away_is_a_503_only_for_who_must_wait(issuers, fake, clock):
    fake.is_away = True
    with pytest.raises(IssuerAway):
        await issuers.verify(fake.token(now_s=real_now()))

    fake.is_away = False
    clock.now_s += REFETCH_S + 1
    token = fake.token(now_s=real_now())
    await issuers.verify(token)
    fake.is_away = True
    clock.now_s += 100_000

    assert (await issuers.verify(token)).subject == "subject-1"


async def test_an_answer_without_end_is_not_read_to_it(issuers, fake):
    fake.codes["code"] = "x" * ANSWER_BYTES_MAX

    with pytest.raises(IssuerAway) as raised:
        await issuers.by_name["company"].exchange("code", verifier="v", redirect_uri="https://x/y", nonce="n")

    assert "without end" in (raised.value.detail or "")


async def test_privy_tells_the_address_by_its_own_api(fake, clock):
    did = "did:privy:abc"
    fake.privy_users[did] = {
        "linked_accounts": [
            {"type": "email", "address": "unproved@example.com"},
            {"type": "email", "address": "ann@example.com", "verified_at": 1700000000},
        ]
    }
    settings = Issuer(issuer="privy.io", audience="app-1", kind="privy", client_secret=None)
    from gateway.secret import Secret

    with_secret = Issuer(issuer="privy.io", audience="app-1", kind="privy", client_secret=Secret("s"))
    token = fake.token(now_s=real_now(), iss="privy.io", aud="app-1", sub=did)
    async with fake.client() as client:
        plain = await Issuers({"privy": settings}, client=client, clock=clock).verify(token)
        claims = await Issuers({"privy": with_secret}, client=client, clock=clock).verify(token)

    assert plain.email is None
    assert claims.email == "ann@example.com"
