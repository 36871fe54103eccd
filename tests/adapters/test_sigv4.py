"""The signature against the vectors that AWS publishes: its test suite of version 4, and the example of the IAM guide."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_adapters.sigv4 import Signer

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
NOW_S = datetime(2015, 8, 30, 12, 36, tzinfo=UTC).timestamp()
FORM = (b"content-type", b"application/x-www-form-urlencoded")
SESSION_TOKEN = (
    "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwt"
    "hAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXA"
    "kiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA=="
)


def signer(service: str = "service", **options: str) -> Signer:
    return Signer(
        access_key_id="AKIDEXAMPLE", secret_access_key=SECRET, region="us-east-1", service=service, **options
    )


def signature(signer: Signer, **request: Any) -> str:
    whole = {
        "method": b"GET",
        "host": b"example.amazonaws.com",
        "path": b"/",
        "headers": [],
        "body": b"",
        "now_s": NOW_S,
    } | request
    value = dict(signer.sign(**whole))[b"authorization"].decode()
    return value.rpartition("Signature=")[2]


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({}, "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        ({"method": b"POST"}, "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
        (
            {"query": b"Param2=value2&Param1=value1"},
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        ),
        (
            {"path": b"/-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"},
            "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f",
        ),
        (
            {"method": b"POST", "headers": [FORM], "body": b"Param1=value1"},
            "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
        ),
        (
            {"headers": [(b"my-header1", b" value1"), (b"my-header2", b' "a   b   c"')]},
            "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
        ),
    ],
)
def test_the_published_suite(request_: dict[str, Any], expected: str) -> None:
    assert signature(signer(), **request_) == expected


def test_the_token_of_a_session_is_signed_too() -> None:
    headers = dict(
        signer(session_token=SESSION_TOKEN).sign(
            method=b"POST", host=b"example.amazonaws.com", path=b"/", headers=[], body=b"", now_s=NOW_S
        )
    )

    assert headers[b"x-amz-security-token"] == SESSION_TOKEN.encode()
    assert headers[b"authorization"] == (
        b"AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "
        b"SignedHeaders=host;x-amz-date;x-amz-security-token, "
        b"Signature=85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead"
    )


def test_the_example_of_the_guide() -> None:
    iam = signer("iam")

    assert iam.key_of("20150830").hex() == "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9"
    assert (
        signature(
            iam,
            host=b"iam.amazonaws.com",
            query=b"Action=ListUsers&Version=2010-05-08",
            headers=[(b"content-type", b"application/x-www-form-urlencoded; charset=utf-8")],
        )
        == "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
    )


def test_an_encoded_path_is_encoded_once_more() -> None:
    """`%3A` is signed as `%253A`: the two must differ, and a colon by itself is signed as `%3A`."""
    encoded, plain = (
        signature(signer("bedrock"), path=path) for path in (b"/model/a%3A0/converse", b"/model/a%253A0/converse")
    )

    assert encoded != plain


def test_a_new_day_has_a_new_key() -> None:
    one = signer()

    first = signature(one)
    later = signature(one, now_s=NOW_S + 86_400)

    assert first != later
    assert signature(one) == first
    assert signature(signer(), now_s=NOW_S + 86_400) == later


@given(body=st.binary(max_size=100), seconds=st.integers(0, 2**32))
def test_a_signature_depends_on_nothing_but_what_is_signed(body: bytes, seconds: int) -> None:
    used, fresh = signer(), signer()
    signature(used, body=b"other", now_s=seconds / 2)

    assert signature(used, body=body, now_s=seconds) == signature(fresh, body=body, now_s=seconds)
    assert signature(used, body=body + b"x", now_s=seconds) != signature(used, body=body, now_s=seconds)
