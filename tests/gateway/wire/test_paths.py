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

    assert target is not None
    assert target[:4] == (Dialect.OPENAI_CHAT, b"/chat/completions", "/v1/chat/completions", None)


def test_an_azure_deployment_names_the_model() -> None:
    target = resolve(b"/openai/deployments/my%20gpt/chat/completions")

    assert target is not None
    assert (target.dialect, target.path, target.model) == (Dialect.OPENAI_CHAT, b"/chat/completions", "my gpt")


@pytest.mark.parametrize(
    "raw",
    [
        b"/v1beta/models/gemini-x:streamGenerateContent",
        b"/v1/models/gemini-x:streamGenerateContent",
        b"/v1alpha/models/gemini-x:streamGenerateContent/",
        b"/v1//v1beta/models/gemini-x:streamGenerateContent",
        b"/v1beta/models/gemini-x%3AstreamGenerateContent",
        b"/v1beta/models/gemini-x:streamgeneratecontent",
        b"/v1beta1/publishers/google/models/gemini-x:streamGenerateContent",
        b"/v1beta1/projects/p/locations/global/publishers/google/models/gemini-x:streamGenerateContent",
    ],
)
def test_google_names_the_model_and_the_verb_in_the_path(raw: bytes) -> None:
    label = "/v1/models/*:streamGenerateContent"

    target = resolve(raw)

    assert target is not None
    assert target.dialect is Dialect.GEMINI_GENERATE
    assert (target.path, target.model) == (b"/models/gemini-x:streamGenerateContent", "gemini-x")
    assert target.stream
    assert target.label == label


@pytest.mark.parametrize(
    ("verb", "dialect"),
    [
        (b"generateContent", Dialect.GEMINI_GENERATE),
        (b"countTokens", Dialect.GEMINI_COUNT_TOKENS),
        (b"embedContent", Dialect.GEMINI_EMBED),
        (b"batchEmbedContents", Dialect.GEMINI_EMBED),
    ],
)
def test_a_model_of_googles_paths_may_have_slashes_and_colons(verb: bytes, dialect: Dialect) -> None:
    """A name with a slash may come plain or encoded; the last colon is the one before the verb."""
    spellings = (
        b"/v1beta/models/openai/gpt-4o:floor:",
        b"/v1beta/models/openai%2Fgpt-4o%3Afloor:",
        b"/v1beta1/publishers/openai/models/gpt-4o:floor:",
    )
    for raw in spellings:
        target = resolve(raw + verb)

        assert target is not None
        assert (target.dialect, target.model, target.stream) == (dialect, "openai/gpt-4o:floor", False)
        assert target.path == b"/models/openai%2Fgpt-4o%3Afloor:" + verb


@pytest.mark.parametrize(
    "raw",
    [
        b"/v1beta/models/x:predict",
        b"/v1beta/models/:generateContent",
        b"/v1beta/models/../files/x:generateContent",
        b"/v1beta/models/..%2ffiles%2fx:generateContent",
        b"/v1beta/models/a%0d%0ab:generateContent",
        b"/v1beta/chat/completions",
        b"/v1beta/models/..",
        b"/v1beta/models/%2e%2e/x",
        b"/v1beta/files",
        b"/openai/deployments/d/models/x:generateContent",
    ],
)
def test_no_other_path_of_googles_leads_anywhere(raw: bytes) -> None:
    assert resolve(raw) is None


@pytest.mark.parametrize("raw", [b"/v1beta/models", b"/v1/v1beta/models/", b"/v1beta1/publishers/google/models"])
def test_google_lists_models_under_its_own_versions(raw: bytes) -> None:
    target = resolve(raw)

    assert target is not None
    assert (target.dialect, target.path, target.label) == (Dialect.OPENAI_OTHER, b"/models", "/v1/*")


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
