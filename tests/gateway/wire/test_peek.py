"""Request bodies: read without decoding, changed without encoding."""

import msgspec
import pytest

from gateway.errors import BadRequest
from gateway.wire.peek import MEMBERS_MAX, Peek, insert_member, members_among, peek, rewrite, splice

CHAT = b'{"model":"gpt-4o","messages":[{"role":"user","content":"hi"}],"stream":true,"max_tokens":5}'


def at(body: bytes, span: tuple[int, int] | None) -> bytes:
    assert span is not None
    return body[span[0] : span[1]]


def refused(body: bytes) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        peek(body)
    return caught.value


def test_the_usual_body_is_read():
    found = peek(CHAT)

    assert (found.model, found.stream, found.max_output_tokens, found.n) == ("gpt-4o", True, 5, 1)
    assert at(CHAT, found.model_span) == b'"gpt-4o"'
    assert (found.end, found.empty) == (len(CHAT) - 1, False)


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [], "model": "m", "stream": true}',
        b'{ "messages" : [ ] ,\r\n\t"model"\n:\t"m" , "stream" : true }\n',
        b' \n{"stream":true,"x":{"model":"nested","stream":false},"model":"m"} \r\n',
        b'{"x":"\\"model\\":\\"no\\"","model":"m","stream":true,"y":"\\\\"}',
        b'{"mod\\u0065l":"m","str\\u0065am":true}',
        b'{"model":"\\u006d","stream":true}',
        b'\xef\xbb\xbf{"model":"m","stream":true}',
        b'{"model":"m","stream":true,"x":[NaN,Infinity,-Infinity],"NaN":"Infinity"}',
        b'{"model":"m","stream":true,"x":"\xff\xfe","\xff":1}',
        b'{"model":"m","stream":true,"x":"\\ud800","\\udfff":1}',
        b'{"x":1,"x":12,"model":"m","stream":true,"x":[{"model":1}]}',
        b'{"x":12,"x":1,"stream":true,"model":"m"}',
        b'{"x":"a","stream":true,"x":"ab","model":"m"}',
    ],
)
def test_model_and_stream_are_found_however_the_body_is_written(body: bytes):
    found = peek(body)

    assert (found.model, found.stream) == ("m", True)
    assert msgspec.json.decode(at(body, found.model_span)) == "m"
    assert body[found.end : found.end + 1] == b"}"
    assert not body[found.end + 1 :].strip()


def test_case_38_only_the_model_changes():
    body = b'{ "z" :1.0,"mod\\u0065l": "a" ,"a":[1e-7 , -0.0],"seed":9007199254740993,"u":"\\u00e9"}\n'

    out = rewrite(body, peek(body), model='b"\u00e9')

    assert out == body.replace(b'"a" ,', '"b\\"\u00e9" ,'.encode())


@pytest.mark.parametrize("number", [b"1.0", b"9007199254740993", b"1e-7", b"-0.0", b"1e400", b"1" * 5000])
def test_case_37_numbers_keep_their_spelling(number: bytes):
    body = b'{"model":"a","temperature":' + number + b"}"

    assert rewrite(body, peek(body), model="b") == b'{"model":"b","temperature":' + number + b"}"


def test_case_36_unknown_members_stay():
    body = b'{"foo":{"bar":[1,2]},"model":"a","messages":[{"role":"user","content":"x","zed":null}]}'

    assert rewrite(body, peek(body), model="b") == body.replace(b'"a"', b'"b"')


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"cheap","model":"expensive"}',
        b'{"model":"cheap","model":"cheap"}',
        b'{"model":"cheap","x":[],"mod\\u0065l":"expensive"}',
        b'{"model":"cheap","m\\u006Fdel" : "expensive"}',
        b'{"model":"cheap","Model":"expensive"}',
        b'{"MODEL":"expensive"}',
        b'{"Model":"expensive","x":NaN,"model":"cheap"}',
        b'{"model":"a","x":"long enough","x":"","model":"b"}',
        b'{"x":1,"model":"cheap","x":[{"pad":1}],"model":"expensive"}',
    ],
)
def test_case_61_a_model_that_two_parsers_could_read_differently_is_refused(body: bytes):
    error = refused(body)

    assert (error.status, error.param) == (400, "model")
    assert "`model`" in error.message


@pytest.mark.parametrize("name", ["stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "models"])
def test_case_61_other_watched_members_may_be_there_once(name: str):
    one = msgspec.json.encode(name)
    lookalike = msgspec.json.encode(name.upper())

    assert refused(b'{"model":"m",%b:1,"x":2,%b:1}' % (one, one)).param == name
    assert refused(b'{"model":"m",%b:1,"x":2,%b:1}' % (one, lookalike)).param == name
    assert refused(b'{"model":"m","x":1,"x":2,%b:1,%b:1}' % (lookalike, one)).param == name


def test_case_61_names_that_only_unicode_folds_together_are_refused():
    kelvin = '{"model":"m","max_tokens":1,"max_to\u212aens":100000}'.encode()
    long_s = '{"model":"m","stream":true,"\u017ftream":false}'.encode()

    assert refused(kelvin).param == "max_tokens"
    assert refused(long_s).param == "stream"
    assert refused(long_s.replace(b'"m"', b'"\xff"', 1)).param in ("stream", "model")


def test_a_lookalike_alone_is_just_unknown():
    assert peek(b'{"model":"m","N":3}').n == 1


def test_case_61_a_body_made_to_mislead_the_walk_is_refused():
    # Stepping over the first `x` by the length of the last one lands on a member that looks right.
    last = b'"' + b"p" * 40 + b'"'
    for pad in range(60):
        first = b'"","pad":"' + b"q" * pad + b'","model":"expensive"'
        assert refused(b'{"x":' + first + b',"model":"cheap","x":' + last + b"}").param == "model"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "empty"),
        (b" \r\n", "empty"),
        (b"[]", "object"),
        (b'"x"', "object"),
        (b"1", "object"),
        (b"null", "object"),
        (b"NaN", "object"),
        (b'{"model":"m"', "JSON"),
        (b'{"model":"m', "JSON"),
        (b'{"model":"m",}', "JSON"),
        (b'{"model":"m"}}', "JSON"),
        (b'{"model":"m"}{"model":"n"}', "JSON"),
        (b'{"model":"m" "x":1}', "JSON"),
        (b"{'model':'m'}", "JSON"),
        (b'{"model":"m","x":"\x01"}', "JSON"),
        (b'{"model":"m","x":nan}', "JSON"),
        (b'{"model":"m","x":"\\q"}', "JSON"),
        (b"\xff\xfe{\x00}\x00", "JSON"),
        (b'{"model":"m","x":"\xff"', "JSON"),
    ],
)
def test_case_55_what_is_no_json_object_is_refused(body: bytes, says: str):
    error = refused(body)

    assert error.status == 400
    assert says in error.message


@pytest.mark.parametrize("value", [b"1", b"null", b"[]", b'{"a":1}', b"true", b'"\xff"', b'"\\ud800"'])
def test_case_55_a_model_must_be_a_string(value: bytes):
    assert refused(b'{"model":' + value + b"}").param == "model"


def test_a_missing_model_is_the_callers_to_judge():
    assert peek(b'{"messages":[]}').model is None
    assert peek(b"{}") == Peek(end=1, empty=True)


@pytest.mark.parametrize("value", [b'"true"', b"null", b"1", b"false", b"[]", b"NaN"])
def test_case_60_only_true_streams(value: bytes):
    assert peek(b'{"model":"m","stream":' + value + b"}").stream is False


def test_case_54_deep_nesting_ends_in_an_answer():
    for depth in (2_000, 200_000):
        for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
            body = b'{"model":"m","x":' + opening * depth + b"1" + closing * depth + b"}"
            assert "deeply" in refused(body).message
    fine = b'{"model":"m","x":' + b"[" * 500 + b"]" * 500 + b"}"
    assert peek(fine).model == "m"


def test_too_many_members_are_refused():
    members = b",".join(b'"k%d":1' % number for number in range(MEMBERS_MAX + 1))

    assert "too many" in refused(b"{" + members + b"}").message
    assert "too many" in refused(b"{" + b",".join([b'"k":1'] * (MEMBERS_MAX + 1)) + b"}").message


def test_a_repeated_member_too_intricate_to_step_over_is_refused():
    intricate = b"[" + b",".join([b"[]"] * 150_000) + b"]"

    assert "intricate" in refused(b'{"x":' + intricate + b',"x":1,"model":"m"}').message
    # Once, it is stepped over in C.
    assert peek(b'{"x":' + intricate + b',"model":"m"}').model == "m"


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (b'"max_tokens":5', 5),
        (b'"max_tokens":5,"max_completion_tokens":9', 9),
        (b'"max_output_tokens":7', 7),
        (b'"max_tokens":null', None),
        (b'"max_tokens":"5"', None),
        (b'"max_tokens":-1', None),
        (b'"max_tokens":true', None),
        (b'"max_tokens":1e3', 1000),
        (b'"max_tokens":1.5', None),
        (b'"max_tokens":1e999', 10**18),
        (b'"max_tokens":' + b"9" * 10_000, 10**18),
        (b'"max_tokens":0', 0),
    ],
)
def test_the_output_limit_is_the_largest_that_is_set(members: bytes, expected: int | None):
    assert peek(b'{"model":"m",' + members + b"}").max_output_tokens == expected


def test_every_answer_that_is_generated_counts():
    assert peek(b'{"n":3}').n == 3
    assert peek(b'{"n":2,"best_of":5}').n == 5
    assert peek(b'{"n":null}').n == 1
    assert peek(b'{"n":0}').n == 1


@pytest.mark.parametrize(
    ("members", "tier"),
    [
        (b'"speed":"fast"', "fast"),
        (b'"speed":"fast","service_tier":"standard_only"', "fast"),
        (b'"service_tier":"auto","speed":"fast"', "fast"),
        (b'"service_tier":"auto","speed":"standard"', "auto"),
        (b'"speed":1.25', None),
    ],
)
def test_fast_is_a_tier_as_well(members, tier):
    assert peek(b'{"model":"m",' + members + b"}").service_tier == tier


def test_tier_and_further_models_are_reported():
    found = peek(b'{"model":"m","service_tier":"flex","models":["a","b"]}')

    assert found.service_tier == "flex"
    assert found.models_span is not None
    assert (peek(CHAT).service_tier, peek(CHAT).models_span, peek(CHAT).provider_span) == (None, None, None)


# -- changing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"stream":true}', b'{"stream":true,"stream_options":{"include_usage":true}}'),
        (b'{"stream":true }\n', b'{"stream":true ,"stream_options":{"include_usage":true}}\n'),
        (b'{"stream":true,"stream_options":{}}', b'{"stream":true,"stream_options":{"include_usage":true}}'),
        (b'{"stream_options":{ },"stream":true}', b'{"stream_options":{ "include_usage":true},"stream":true}'),
        (
            b'{"stream":true,"stream_options":{"include_obfuscation":false}}',
            b'{"stream":true,"stream_options":{"include_obfuscation":false,"include_usage":true}}',
        ),
        (
            b'{"stream":true,"stream_options":{"include_usage" : false}}',
            b'{"stream":true,"stream_options":{"include_usage" : true}}',
        ),
        (
            b'{"stream":true,"stream_options":{"x":{"include_usage":1},"include_usage":null}}',
            b'{"stream":true,"stream_options":{"x":{"include_usage":1},"include_usage":true}}',
        ),
        (b'{"stream":true,"stream_options":null}', b'{"stream":true,"stream_options":{"include_usage":true}}'),
    ],
)
def test_a_stream_is_asked_for_its_usage(body: bytes, expected: bytes):
    assert rewrite(body, peek(body), include_usage=True) == expected
    assert peek(expected).include_usage is True


@pytest.mark.parametrize(
    "body",
    [
        b'{"stream":true,"stream_options":{"include_usage":true}}',
        b'{"stream":false}',
        b"{}",
        b'{"stream":true,"stream_options":"x"}',
        b'{"stream":true,"stream_options":{"include_usage":"yes"}}',
    ],
)
def test_a_body_that_needs_nothing_is_the_same_object(body: bytes):
    assert rewrite(body, peek(body), include_usage=True, model=peek(body).model) is body


def test_usage_asked_for_twice_is_refused():
    error = refused(b'{"stream":true,"stream_options":{"include_usage":true,"include_usage":false}}')

    assert error.param == "stream_options.include_usage"


def test_model_and_usage_are_both_added_to_an_empty_object():
    body = b'{"stream":true}'

    out = rewrite(b"{}", peek(b"{}"), model="m")
    both = rewrite(body, peek(body), model="m", include_usage=True)

    assert out == b'{"model":"m"}'
    assert both == b'{"stream":true,"model":"m","stream_options":{"include_usage":true}}'


@pytest.mark.parametrize(
    ("drop", "expected"),
    [
        ({"a"}, b'{ "b":{"a":1} , "c":3}'),
        ({"b"}, b'{ "a":1 , "c":3}'),
        ({"c"}, b'{ "a":1 , "b":{"a":1}}'),
        ({"a", "b"}, b'{ "c":3}'),
        ({"b", "c"}, b'{ "a":1}'),
        ({"a", "b", "c"}, b"{ }"),
        ({"zed"}, b'{ "a":1 , "b":{"a":1} , "c":3}'),
    ],
)
def test_members_are_dropped_with_their_comma(drop: set[str], expected: bytes):
    body = b'{ "a":1 , "b":{"a":1} , "c":3}'

    assert rewrite(body, peek(body), drop=drop) == expected


def test_dropping_everything_leaves_room_for_what_is_added():
    body = b'{"stream":true,"stream_options":{}}'

    out = rewrite(body, peek(body), drop={"stream", "stream_options"}, model="m")

    assert out == b'{"model":"m"}'


def test_usage_is_not_asked_for_where_the_option_was_dropped():
    body = b'{"stream":true,"stream_options":{"x":1}}'

    assert rewrite(body, peek(body), drop={"stream_options"}, include_usage=True) == b'{"stream":true}'


def test_members_are_renamed():
    body = b'{"max_completion_tokens" : 5,"model":"a"}'

    out = rewrite(body, peek(body), rename={"max_completion_tokens": "max_tokens"}, model="b")

    assert out == b'{"max_tokens" : 5,"model":"b"}'


def test_a_rename_onto_what_is_there_removes_the_member():
    body = b'{"max_completion_tokens":5,"max_tokens":6}'

    assert rewrite(body, peek(body), rename={"max_completion_tokens": "max_tokens"}) == b'{"max_tokens":6}'


def test_repeated_unknown_members_are_dropped_each_time():
    body = b'{"x":1,"model":"a","x":[2],"x":"3"}'

    assert rewrite(body, peek(body), drop={"x"}) == b'{"model":"a"}'


def test_dropping_works_in_bodies_that_are_not_strict():
    body = b'\xef\xbb\xbf{"seed":NaN,"model":"a","x":"\xff\\ud800"}'

    assert rewrite(body, peek(body), drop={"seed"}) == b'\xef\xbb\xbf{"model":"a","x":"\xff\\ud800"}'


def test_splice_replaces_in_any_order_and_refuses_overlap():
    assert splice(b"abcdef", [((4, 5), b"X"), ((0, 0), b">"), ((1, 3), b"")]) == b">adXf"
    with pytest.raises(ValueError, match="overlap"):
        splice(b"abcdef", [((0, 3), b""), ((2, 4), b"")])


def test_a_member_is_inserted_before_the_closing_brace():
    body = b'{"a":1} '

    assert splice(body, [insert_member(peek(body), 'b"', b"2")]) == b'{"a":1,"b\\"":2} '


def test_case_56_big_pictures_are_stepped_over():
    picture = b"data:image/png;base64," + b"QUJD" * 2_500_000
    body = b'{"messages":[{"content":"%b"}],"model":"m","stream":true}' % picture

    found = peek(body)

    assert (found.model, found.stream) == ("m", True)
    assert rewrite(body, found, model="n") == body.replace(b'"m"', b'"n"')


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"model":"m"}', ()),
        (b'{"user":"u","model":"m","st\\u006fre":true}', ("user", "store")),
        (b'{"user":null,"metadata":{"store":1},"x":"\\"store\\":1"}', ()),
        (b'{"user":"a","user":"b"}', ("user",)),
    ],
)
def test_members_are_found_among_others(body: bytes, found: tuple[str, ...]):
    assert members_among(body, ("store", "user")) == found
