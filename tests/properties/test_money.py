"""Costs are exact: what integer arithmetic gives is the fraction, rounded up once."""

from fractions import Fraction
from math import ceil

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadRequest
from gateway.kernel.money import MAX_NANOS, Price, Tier, cost_nanos, fee_nanos, format_usd, hold_nanos, parse_usd
from gateway.wire.dialects import Dialect
from gateway.wire.form import scan_form
from gateway.wire.peek import peek
from gateway.wire.units import Units, units_of
from gateway.wire.usage import Usage

tokens = st.integers(0, 3_000_000)
some = st.just(0) | st.integers(0, 100_000)
mtok = st.integers(0, 200_000_000_000)
part = st.none() | mtok
unit = st.integers(0, 500_000_000)
PARTS = {
    "input_cached_tokens": ("input_tokens", "input_cached_mtok_nanos"),
    "input_cache_write_tokens": ("input_tokens", "input_cache_write_mtok_nanos"),
    "input_audio_tokens": ("input_tokens", "input_audio_mtok_nanos"),
    "input_image_tokens": ("input_tokens", "input_image_mtok_nanos"),
    "output_reasoning_tokens": ("output_tokens", "output_reasoning_mtok_nanos"),
    "output_audio_tokens": ("output_tokens", "output_audio_mtok_nanos"),
    "output_image_tokens": ("output_tokens", "output_image_mtok_nanos"),
}
plain_prices = st.builds(
    Price,
    input_mtok_nanos=mtok,
    output_mtok_nanos=mtok,
    **{price: part for _, price in PARTS.values()},
    input_cache_write_1h_mtok_nanos=part,
    image_nanos=unit,
    second_nanos=unit,
    character_nanos=unit,
    search_nanos=unit,
    request_nanos=unit,
    markup_permille=st.integers(0, 5000),
    service_permille=st.just({}) | st.just({"flex": 500, "priority": 2000}),
)


@st.composite
def prices(draw: st.DrawFn) -> Price:
    price = draw(plain_prices)
    above = sorted(draw(st.lists(st.integers(1, 2_000_000), unique=True, max_size=3)))
    tiers = tuple(Tier(at, draw(plain_prices)) for at in above)
    return Price(**{**{name: getattr(price, name) for name in price.__struct_fields__}, "tiers": tiers})


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    """With parts within their totals, as every dialect's reader delivers them."""
    counts = {}
    for total, names in (
        ("input_tokens", ["input_cache_write_1h_tokens", *[n for n in PARTS if n.startswith("input")]]),
        ("output_tokens", [n for n in PARTS if n.startswith("output")]),
    ):
        left = counts[total] = draw(tokens)
        for name in names:
            counts[name] = draw(st.integers(0, left) | st.just(0))
            left -= counts[name]
    return Usage(
        **counts,
        images=draw(some),
        seconds=draw(st.just(0.0) | st.floats(0, 1e6)),
        characters=draw(some),
        searches=draw(some),
        service_tier=draw(st.none() | st.sampled_from(["flex", "priority", "default"])),
    )


def fraction(usage: Usage, price: Price) -> Fraction:
    """The cost by the book, kind by kind."""
    rates = price
    for tier in price.tiers:
        if usage.input_tokens > tier.above_tokens:
            rates = tier.price
    total = Fraction(0)
    plain = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
    kinds = {name: (whole, getattr(rates, price_name)) for name, (whole, price_name) in PARTS.items()}
    long_write = rates.input_cache_write_1h_mtok_nanos
    if long_write is None:
        long_write = rates.input_cache_write_mtok_nanos
    kinds["input_cache_write_1h_tokens"] = ("input_tokens", long_write)
    for name, (whole, rate) in kinds.items():
        if rate is not None:
            plain[whole] -= getattr(usage, name)
            total += Fraction(getattr(usage, name) * rate, 1_000_000)
    total += Fraction(plain["input_tokens"] * rates.input_mtok_nanos, 1_000_000)
    total += Fraction(plain["output_tokens"] * rates.output_mtok_nanos, 1_000_000)
    total += rates.request_nanos + usage.images * rates.image_nanos + usage.characters * rates.character_nanos
    total += usage.searches * rates.search_nanos + Fraction(usage.seconds) * rates.second_nanos
    permille = price.service_permille.get(usage.service_tier or "", 1000)
    return total * Fraction(price.markup_permille, 1000) * Fraction(permille, 1000)


@given(usage=usages(), price=prices())
def test_cost_is_the_exact_fraction_rounded_up_once(usage: Usage, price: Price) -> None:
    assert cost_nanos(usage, price) == ceil(fraction(usage, price))


@given(
    usage=usages(),
    price=plain_prices,
    more=tokens,
    which=st.sampled_from(["input_tokens", "output_tokens", "images", "characters", "searches"]),
)
def test_more_never_costs_less(usage: Usage, price: Price, more: int, which: str) -> None:
    fields = {name: getattr(usage, name) for name in usage.__struct_fields__}

    larger = Usage(**{**fields, which: fields[which] + more})

    assert cost_nanos(larger, price) >= cost_nanos(usage, price)


@given(
    usage=st.builds(
        Usage,
        **{
            name: st.integers(-1_000_000, 1_000_000)
            for name in ("input_tokens", "output_tokens", *PARTS, "images", "characters", "searches")
        },
        seconds=st.floats(-1e9, 1e9),
        provider_cost_nanos=st.none() | st.integers(-1_000_000, 1_000_000),
    ),
    price=prices(),
    trusted=st.booleans(),
)
def test_nonsense_from_a_provider_is_never_a_credit(usage: Usage, price: Price, trusted: bool) -> None:
    fields = {name: getattr(price, name) for name in price.__struct_fields__}

    assert cost_nanos(usage, Price(**{**fields, "provider_cost": trusted})) >= 0


@given(usage=usages(), price=prices(), spare_input=some, spare_output=some, downgraded=st.booleans())
def test_a_hold_covers_whatever_the_call_turns_out_to_be(
    usage: Usage, price: Price, spare_input: int, spare_output: int, downgraded: bool
) -> None:
    """At the tier that was asked for, or at the plain one where a dearer one was."""
    asked = "priority" if downgraded and usage.service_tier != "flex" else usage.service_tier
    fields = {name: getattr(usage, name) for name in usage.__struct_fields__}
    call = Usage(**{**fields, "searches": 0})

    held = hold_nanos(
        usage.input_tokens + spare_input,
        usage.output_tokens + spare_output,
        price,
        images=usage.images,
        seconds=ceil(usage.seconds),
        characters=usage.characters,
        service_tier=asked,
    )

    assert held >= cost_nanos(call, price)


@given(nanos=st.integers(-MAX_NANOS, MAX_NANOS))
def test_dollars_read_back_as_they_were_written(nanos: int) -> None:
    assert parse_usd(format_usd(nanos)) == nanos


PICTURES = st.fixed_dictionaries(
    {},
    optional={
        "n": st.integers(1, 10),
        "size": st.sampled_from(["auto", "1024x1024", "1024x1792"]),
        "quality": st.sampled_from(["auto", "low", "medium", "high", "hd"]),
    },
)
UNIT_PRICES = st.builds(
    Price,
    input_mtok_nanos=st.integers(0, 10**10),
    output_mtok_nanos=st.integers(0, 10**10),
    input_image_mtok_nanos=st.none() | st.integers(0, 10**10),
    output_audio_mtok_nanos=st.none() | st.integers(0, 10**10),
    image_nanos=st.integers(0, 10**9),
    image_prices=st.dictionaries(st.sampled_from(["hd", "1024x1792", "hd 1024x1792", "low"]), st.integers(0, 10**9)),
    second_nanos=st.integers(0, 10**6),
    hour_nanos=st.integers(0, 10**9),
    character_nanos=st.integers(0, 10**6),
    search_nanos=st.integers(0, 10**7),
    request_nanos=st.integers(0, 10**7),
)


@given(
    st.one_of(
        st.tuples(st.just(Dialect.OPENAI_IMAGES), PICTURES),
        st.tuples(st.just(Dialect.OPENAI_SPEECH), st.fixed_dictionaries({"input": st.text(max_size=50)})),
        st.tuples(
            st.just(Dialect.RERANK), st.fixed_dictionaries({"documents": st.lists(st.just("d"), max_size=250)})
        ),
        st.tuples(st.just(Dialect.OPENAI_MODERATIONS), st.fixed_dictionaries({"input": st.text(max_size=50)})),
    ),
    UNIT_PRICES,
)
def test_a_hold_covers_what_an_answer_is_worth_in_any_unit(asked, price: Price) -> None:
    dialect, members = asked
    body = msgspec.json.encode(members)
    units = units_of(dialect, body, peek(body))

    assert cost_nanos(units.usage, price) <= _held(units, price)


@given(st.binary(max_size=300), st.integers(0, 50), UNIT_PRICES)
def test_a_hold_covers_any_recording(start: bytes, pages: int, price: Price) -> None:
    file = start + b"OggS" * 1_000 * pages
    body = b'--X\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + file + b"\r\n--X--\r\n"
    try:
        form = scan_form(body, b"multipart/form-data; boundary=X")
    except BadRequest:
        return
    units = units_of(Dialect.OPENAI_TRANSCRIPTIONS, b"", form.peek(), form=form, upload_bytes=len(body))

    assert cost_nanos(units.usage, price) <= _held(units, price)


def _held(units: Units, price: Price) -> int:
    return hold_nanos(
        units.input_tokens,
        units.output_tokens,
        price,
        images=units.images,
        image_kind=units.image_kind,
        seconds=ceil(units.seconds),
        characters=units.characters,
        searches=units.searches,
    )


@given(cost=st.integers(0, MAX_NANOS), hold=st.integers(0, MAX_NANOS), permille=st.integers(0, 1000))
def test_a_fee_is_its_share_rounded_up_and_never_above_the_fee_that_was_held(cost, hold, permille):
    fee = fee_nanos(cost, permille)

    assert fee == ceil(Fraction(cost * permille, 1000))
    assert 0 <= fee <= cost
    if cost <= hold:
        assert fee <= fee_nanos(hold, permille)
