"""What is found in texts, what is not, and that everything else stays as it came."""

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api import ConfigError
from gateway_plugins.redact import KINDS, Redact, Redactor

REDACTOR = Redactor()


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("write to jo.doe+x@mail.example.com.", "write to [EMAIL]."),
        ("<a@b.co>", "<[EMAIL]>"),
        ("Ångström@bücher.example", "[EMAIL]"),
        ("4111111111111111", "[CARD]"),
        ("card 4111 1111 1111 1111, cvc", "card [CARD], cvc"),
        ("3782-822463-10005", "[CARD]"),
        ("DE89 3704 0044 0532 0130 00.", "[IBAN]."),
        ("GB82WEST12345698765432", "[IBAN]"),
        ("NO93 8601 1117 947", "[IBAN]"),
        ("at 192.168.0.1:8080", "at [IP]:8080"),
        ("2001:db8::ff00:42:8329 and fe80::1", "[IP] and [IP]"),
        ("+49 30 901820", "[PHONE]"),
        ("+1 (555) 123-4567", "[PHONE]"),
        ("(555) 123-4567 or 555-123-4567", "[PHONE] or [PHONE]"),
        ("030 / 901 820", "[PHONE]"),
    ],
)
def test_is_found(text: str, clean: str) -> None:
    assert REDACTOR.text(text, {}) == clean


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",  # Luhn
        "GB82WEST12345698765431",  # modulo 97
        "999.1.1.1 and 1.2.3 and v1.2.3.4",
        "std::vector, a::b, 12:30:45",
        "2026-11-22T12:30:45Z",
        "order 12345678, 3.14159265358979",
        "user@localhost, @name, a @ b.c",
        "550e8400-e29b-41d4-a716-446655440000",
        "0123456789abcdef0123456789abcdef",
        "no digits here",
    ],
)
def test_is_let_be(text: str) -> None:
    assert REDACTOR.text(text, {}) == text


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_hint_is_in_whatever_is_found(kind) -> None:
    said = {
        "email": "a@b.co",
        "iban": "DE89370400440532013000",
        "card": "4111 1111 1111 1111",
        "phone": "+4930901820",
    }
    for text in [said[kind.name]] if kind.name in said else ["10.0.0.1", "fe80::1"]:
        if kind.pattern.search(text):
            assert kind.hint.search(text), text


def test_members_names_and_the_protocols_values_stay() -> None:
    body = b'{"a@b.co":1,"model":"a@b.co","role":"a@b.co","x":{"tool_call_id":"4111111111111111"},"y":"a@b.co"}'

    clean, found = REDACTOR.body(body)

    assert clean == body[:-8] + b'[EMAIL]"}'
    assert found == {"email": 1}


def test_every_other_byte_stays() -> None:
    body = b'{ "n":1.0e5,\t"t":"caf\\u00e9 \\/",  "m":["mail a@b.co\\n\xc3\xa9", "\\u0041" ],"z":null}\n'

    clean, _ = REDACTOR.body(body)

    assert clean == body.replace(b"a@b.co", b"[EMAIL]").replace(b"\\n\xc3\xa9", b"\\n\xc3\xa9")


def test_nothing_found_is_the_very_same_object() -> None:
    body = b'{"m":"nothing 12 here"}'

    assert REDACTOR.body(body)[0] is body


def test_what_escapes_hide_is_found() -> None:
    assert REDACTOR.body(b'{"m":"a\\u0040b.co"}')[0] == b'{"m":"[EMAIL]"}'
    assert REDACTOR.body(b'{"m":"line\\nfoo@b.co"}')[0] == b'{"m":"line\\n[EMAIL]"}'


def test_half_a_surrogate_and_broken_text_do_not_stop_it() -> None:
    assert REDACTOR.body(b'{"m":"\\ud800 a@b.co"}')[0] == b'{"m":"\\ud800 [EMAIL]"}'
    assert REDACTOR.body(b'{"m":"\xff\\na@b.co"}')[0] == b'{"m":"\xff\\n[EMAIL]"}'


def test_what_is_encoded_is_not_broken() -> None:
    picture = "data:image/png;base64," + "4111111111111111" * 10
    signature = "4111111111111111" * 8

    body = msgspec.json.encode({"url": picture, "thing": signature})

    assert REDACTOR.body(body)[0] is body


def test_patterns_of_ones_own_come_first_and_what_is_kept_is_kept() -> None:
    own = Redactor(("email",), patterns={"staff": re.compile("EMP-[0-9]{4}")}, keep=frozenset({"help@acme.example"}))
    found: dict[str, int] = {}

    assert (
        own.text("EMP-1234 help@acme.example a@b.co 10.0.0.1", found) == "[STAFF] help@acme.example [EMAIL] 10.0.0.1"
    )
    assert found == {"staff": 1, "email": 1}


_TEXTS = st.one_of(st.text(), st.sampled_from(["a@b.co", "4111 1111 1111 1111", "+4930901820", 'x"\\\n', "10.0.0.1"]))
_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), _TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_TEXTS, inner, max_size=4)),
    max_leaves=12,
)


def shape(value: object) -> object:
    if isinstance(value, dict):
        return [(name, shape(inner)) for name, inner in value.items()]
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    return str if isinstance(value, str) else value


@given(_VALUES)
def test_json_stays_json_of_the_same_shape(value: object) -> None:
    try:
        body = msgspec.json.encode({"m": value})
    except (msgspec.EncodeError, UnicodeEncodeError):
        return

    clean, found = REDACTOR.body(body)

    after = msgspec.json.decode(clean)
    assert shape(after) == shape(msgspec.json.decode(body))
    assert (clean is body) is not bool(found)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": []}, "is not a key of redact"),
        ({"kinds": ["emails"]}, 'there is no kind "emails"'),
        ({"kinds": "email"}, "Expected `array`"),
        ({"action": "log"}, "must be one of replace, refuse"),
        ({"patterns": {"x": "("}}, "is no regular expression"),
        ({"patterns": {"X y": "a"}}, "is no name"),
    ],
)
def test_a_wrong_table_is_refused(table: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Redact().configure(table)

    assert message in caught.value.message


def test_failing_refuses_unless_told_otherwise() -> None:
    plugin = Redact()
    plugin.configure({})
    assert plugin.essential

    plugin.configure({"on_failure": "pass"})
    assert not plugin.essential
