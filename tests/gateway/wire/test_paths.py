"""The spellings of a path."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.dialects import Dialect
from gateway.wire.paths import resolve


@pytest.mark.parametrize(
    "raw",
    [
        b"/v1/chat/completions",
        b"/v1/chat/completions/",
        b"//v1//chat/completions",
        b"/openai/v1/chat/completions",
        b"/api/v1/chat/completions",
        b"/v1/v1/chat/completions",
        b"/v1/v1/v1/chat/completions",
        b"/v1/%63hat/completions",
        b"/v1/chat%2Fcompletions",
    ],
)
def test_spellings_of_one_endpoint(raw: bytes) -> None:
    target = resolve(raw)

    assert target == (Dialect.OPENAI_CHAT, b"/chat/completions", "/v1/chat/completions", None)


def test_an_azure_deployment_names_the_model() -> None:
    target = resolve(b"/openai/deployments/my%20gpt/chat/completions")

    assert target is not None
    assert (target.dialect, target.path, target.model) == (Dialect.OPENAI_CHAT, b"/chat/completions", "my gpt")


def test_an_encoded_slash_stays_encoded() -> None:
    target = resolve(b"/v1/models/openai%2Fgpt-4o")

    assert target is not None
    assert target.path == b"/models/openai%2Fgpt-4o"
    assert target.label == "/v1/*"


@pytest.mark.parametrize(
    "raw",
    [
        b"/",
        b"/v1",
        b"/v2/chat/completions",
        b"/v1x/chat/completions",
        b"/v1/../admin",
        b"/v1/files/%2e%2e/x",
        b"/v1/files/..%2fx",
        b"/v1/files\\x",
        b"/v1/v1/v1/organization/admin_api_keys",
        b"/v1/%76%31/organization/admin_api_keys",
        b"/v1/./organization/admin_api_keys",
        b"/v1/%2e/organization/admin_api_keys",
        b"/v1/files/./x",
        b"/v1/chat/./completions",
        b"/v1/organization/admin_api_keys",
        b"/v1//organization/admin_api_keys",
        b"/v1/%6frganization/admin_api_keys",
        b"/v1/v1/organization/admin_api_keys",
        b"/v1/files/a b",
    ],
)
def test_what_leads_elsewhere_is_nowhere(raw: bytes) -> None:
    assert resolve(raw) is None


@given(st.binary(max_size=80))
def test_any_bytes_have_an_answer(rest: bytes) -> None:
    target = resolve(b"/v1/" + rest)

    assert target is None or target.path.startswith(b"/")
