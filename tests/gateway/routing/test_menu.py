"""Which offers a request can choose from."""

import pytest

from gateway.errors import BadRequest, NoOffer, UnknownModel, UnmetWish, Unpriced
from gateway.exchange import Offer
from gateway.kernel.money import Price, Tier
from gateway.kernel.offers import OfferTable
from gateway.routing.menu import MENUS_MAX, afford, narrow
from gateway.routing.needs import needs_of
from gateway.routing.preferences import NONE, Preferences
from gateway.settings import Model, ModelTimeouts, Provider, Timeouts
from gateway.wire.dialects import Dialect
from tests.gateway.routing.offers import CHAT, call, menus, offer, priced, providers_of

A, B, C = offer("a"), offer("b"), offer("c")
NOTHING = frozenset()


def narrowed(menu, wishes=NONE, *, needs=NOTHING, tokens=0, **facts):
    return narrow(menu, wishes, needs=needs, tokens=tokens, **facts)


# -- the menu of a model ---------------------------------------------------------------------------------------------


def test_a_menu_is_made_once():
    made = menus({"m": (A, B)})

    assert made.find("m", CHAT) is made.find("m", CHAT)
    assert providers_of(made.find("m", CHAT)) == ["a", "b"]


def test_one_offer_with_one_key_is_nothing_to_choose():
    made = menus({"m": (A,), "two": (A, B)}, {"held": Model()})

    assert made.find("m", CHAT).alone.offer is A
    assert made.find("two", CHAT).alone is None


def test_a_fallback_is_something_to_choose():
    made = menus({"m": (A,), "n": (offer("b", "n"),)}, {"m": Model(fallbacks=("n",))})

    menu = made.find("m", CHAT)

    assert menu.alone is None
    assert [providers_of(group) for group in menu.spare] == [["b"]]
    assert [each.model for each in menu.offers] == ["m", "n"]


def test_fallbacks_by_class_are_all_held_for():
    n, p, q = (offer("b", name) for name in "npq")
    row = Model(fallbacks=("n",), context_fallbacks=("p", "n"), policy_fallbacks=("q", "gone", "m"))
    made = menus({"m": (A,), "n": (n,), "p": (p,), "q": (q,)}, {"m": row})

    menu = made.find("m", CHAT)

    assert [[c.offer.model for c in group.candidates] for group in menu.context] == [["p"], ["n"]]
    assert [[c.offer.model for c in group.candidates] for group in menu.policy] == [["q"]]
    assert [each.model for each in menu.offers] == ["m", "n", "p", "q"]


def test_what_is_remembered_is_shared_by_menus():
    n = offer("b", "n")
    made = menus({"m": (A,), "n": (n,)}, {"m": Model(fallbacks=("n",))})

    (spare,) = made.find("m", CHAT).spare

    assert spare.candidates[0].health is made.find("n", CHAT).own.candidates[0].health


def test_who_does_not_speak_the_dialect_or_has_no_price_is_not_on_it():
    unpriced = offer("b", free=False)
    made = menus({"m": (A, unpriced, C)}, dialects={"c": frozenset({Dialect.OPENAI_EMBEDDINGS})})

    assert providers_of(made.find("m", CHAT)) == ["a"]


@pytest.mark.parametrize(
    ("model", "dialect", "error"),
    [
        ("gone", CHAT, UnknownModel),
        ("", CHAT, BadRequest),
        ("m", Dialect.OPENAI_EMBEDDINGS, BadRequest),
        ("dear", CHAT, Unpriced),
        ("strict", CHAT, NoOffer),
    ],
)
def test_a_model_that_can_not_be_had(model, dialect, error):
    offers = {"m": (A,), "dear": (offer("a", "dear", free=False),), "strict": (offer("a", "strict"),)}
    made = menus(offers, {"strict": Model(require=("zdr",))})

    with pytest.raises(error):
        made.find(model, dialect)


def test_who_has_a_price_and_no_such_endpoint_is_why_a_model_can_not_be_had():
    unpriced = offer("b", free=False)
    made = menus({"m": (unpriced, C)}, dialects={"c": frozenset({Dialect.OPENAI_EMBEDDINGS})})

    with pytest.raises(BadRequest) as raised:
        made.find("m", CHAT)

    assert raised.value.code == "unsupported_endpoint"


def test_tags_that_a_model_requires():
    kept, zero = offer("a"), offer("b", tags=("zdr", "region:eu"))
    made = menus({"m": (kept, zero)}, {"m": Model(require=("zdr",))})

    assert providers_of(made.find("m", CHAT)) == ["b"]


def test_names_callers_make_up_are_forgotten_again():
    made = menus({f"m{number}": (offer("a", f"m{number}"),) for number in range(MENUS_MAX + 5)})

    for number in range(MENUS_MAX + 5):
        made.find(f"m{number}", CHAT)

    assert len(made._menus) <= MENUS_MAX


def test_a_caller_s_models_are_fallbacks_for_everything():
    n, o = offer("b", "n"), offer("c", "o")
    made = menus({"m": (A,), "n": (n,), "o": (o,)}, {"m": Model(fallbacks=("o",))})

    menu = made.combine(("gone", "m", "n"), CHAT)

    assert providers_of(menu) == ["a"]
    for chain in (menu.spare, menu.context, menu.policy):
        assert [providers_of(group) for group in chain] == [["b"]]
    with pytest.raises(UnknownModel):
        made.combine(("gone", "too"), CHAT)


# -- what is left of it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wishes", "left"),
    [
        (NONE, ["a", "b", "c"]),
        (Preferences(only=("b", "c")), ["b", "c"]),
        (Preferences(ignore=("b",)), ["a", "c"]),
        (Preferences(tags=("zdr",)), ["c"]),
        (Preferences(max_input_usd=2.0), ["a", "b"]),
        (Preferences(max_output_usd=2.0), ["a"]),
        (Preferences(max_input_usd=0.5), []),
        (Preferences(only=("nobody",)), []),
        (Preferences(order=("c", "a"), allow_fallbacks=False), ["a", "c"]),
    ],
)
def test_a_caller_s_wishes(wishes, left):
    usd = 1_000_000_000
    offers = (priced("a", usd), priced("b", 2 * usd), priced("c", 3 * usd, tags=("zdr",)))
    menu = menus({"m": offers}).find("m", CHAT)

    if left:
        assert providers_of(narrowed(menu, wishes)) == left
    else:
        with pytest.raises(UnmetWish):
            narrowed(menu, wishes)


def test_an_order_goes_before_every_priority():
    menu = menus({"m": (offer("a", priority=0), offer("b", priority=5), offer("c", priority=1))}).find("m", CHAT)

    left = narrowed(menu, Preferences(order=("b",)))

    ordered = sorted(left.own.candidates, key=lambda candidate: candidate.priority)
    assert [candidate.offer.provider for candidate in ordered] == ["b", "a", "c"]
    assert [candidate.offer.provider for candidate in left.own.best] == ["b"]


def test_a_markup_counts_towards_the_ceiling():
    usd = 1_000_000_000
    menu = menus({"m": (priced("a", usd, price={"markup_permille": 1500}), priced("b", usd))}).find("m", CHAT)

    assert providers_of(narrowed(menu, Preferences(max_input_usd=1.2))) == ["b"]


@pytest.mark.parametrize(
    ("wishes", "facts", "left"),
    [
        ({"max_output_usd": 2.0}, {}, ["a", "b", "c"]),
        # A prompt of this length, or this service tier, is dearer at some of them.
        ({"max_input_usd": 1.0}, {"input_tokens": 1001}, ["b", "c"]),
        ({"max_input_usd": 1.0}, {"service_tier": "priority"}, ["a", "c"]),
        ({"max_input_usd": 1.0}, {"service_tier": "auto"}, ["a", "b", "c"]),
        ({"max_request_usd": 0.001}, {}, ["a", "b"]),
        ({"max_image_usd": 0.0}, {}, ["a", "b", "c"]),
    ],
)
def test_a_ceiling_is_on_what_this_request_would_cost(wishes, facts, left):
    usd = 1_000_000_000
    longer = Tier(1000, Price(input_mtok_nanos=2 * usd, output_mtok_nanos=2 * usd))
    offers = (
        priced("a", usd, price={"tiers": (longer,)}),
        priced("b", usd, price={"service_permille": {"priority": 2000}}),
        priced("c", usd, price={"request_nanos": usd // 100}),
    )
    menu = menus({"m": offers}).find("m", CHAT)

    assert providers_of(narrowed(menu, Preferences(**wishes), **facts)) == left


def test_what_a_provider_serves_unasked_counts_towards_the_ceiling():
    usd = 1_000_000_000
    dear = priced("a", usd, price={"service_permille": {"priority": 2000}}, service_tier="priority")
    menu = menus({"m": (dear, priced("b", usd))}).find("m", CHAT)

    assert providers_of(narrowed(menu, Preferences(max_input_usd=1.0))) == ["b"]
    assert providers_of(narrowed(menu, Preferences(max_input_usd=1.0), service_tier="default")) == ["a", "b"]


def test_a_wish_may_be_met_by_a_fallback_alone():
    made = menus({"m": (A,), "n": (offer("b", "n"),)}, {"m": Model(fallbacks=("n",))})

    assert providers_of(narrowed(made.find("m", CHAT), Preferences(only=("b",)))) == ["b"]


def test_without_fallbacks_there_are_none():
    made = menus({"m": (A, B), "n": (C,)}, {"m": Model(fallbacks=("n",), context_fallbacks=("n",))})

    left = narrowed(made.find("m", CHAT), Preferences(allow_fallbacks=False))

    assert (left.spare, left.context, left.policy) == ((), (), ())
    assert left.sole_try


def test_a_sort_is_a_strategy():
    menu = menus({"m": (A, B)}, {"m": Model(routing="latency")}).find("m", CHAT)

    assert menu.own.strategy == "latency"
    assert narrowed(menu, Preferences(sort="price")).own.strategy == "cost"
    assert narrowed(menu, Preferences(sort="throughput")).own.strategy == "throughput"


def test_who_can_not_do_it_is_passed_over():
    menu = menus({"m": (offer("a", lacks=("tools", "vision")), offer("b", lacks=("vision",)))}).find("m", CHAT)

    assert menu.lacks == {"tools", "vision"}
    assert providers_of(narrowed(menu, needs=frozenset({"tools"}))) == ["b"]
    with pytest.raises(BadRequest, match="vision"):
        narrowed(menu, needs=frozenset({"vision"}))


def test_a_fallback_that_can_do_it_takes_over():
    made = menus({"m": (offer("a", lacks=("tools",)),), "n": (offer("b", "n"),)}, {"m": Model(fallbacks=("n",))})

    assert providers_of(narrowed(made.find("m", CHAT), needs=frozenset({"tools"}))) == ["b"]


def test_a_prompt_goes_where_it_fits():
    menu = menus({"m": (offer("a", context_tokens=100), offer("b", context_tokens=1000))}).find("m", CHAT)

    assert providers_of(narrowed(menu, tokens=50)) == ["a", "b"]
    assert providers_of(narrowed(menu, tokens=500)) == ["b"]
    assert providers_of(narrowed(menu, tokens=5000)) == ["a", "b"], "let the provider say so, it counts better"


def test_a_prompt_that_fits_nowhere_goes_to_the_context_fallbacks():
    small, large = offer("a", context_tokens=100), offer("b", "n", context_tokens=10_000)
    made = menus({"m": (small,), "n": (large,)}, {"m": Model(context_fallbacks=("n",))})

    assert providers_of(narrowed(made.find("m", CHAT), tokens=5000)) == ["b"]
    assert providers_of(narrowed(made.find("m", CHAT), tokens=50)) == ["a"]


# -- needs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "needs"),
    [
        (b'{"messages":[]}', set()),
        (b'{"stream":true}', {"streaming"}),
        (b'{"tools":[{"type":"function"}]}', {"tools"}),
        (b'{"tools":[]}', set()),
        (b'{"tools" : [ {"type":"function"} ]}', {"tools"}),
        (b'{"messages":[{"role":"user","content":"say \\"tools\\":[{"}]}', set()),
        (b'{"messages":[{"content":[{"type":"image_url","image_url":{"url":"x"}}]}]}', {"vision"}),
        (b'{"messages":[{"content":[{"type":"input_audio","input_audio":{}}]}]}', {"audio"}),
        (b'{"response_format":{"type":"json_schema","json_schema":{}}}', {"json_schema"}),
        (b'{"response_format":{"type":"json_object"}}', set()),
    ],
)
def test_what_a_request_needs_shows_in_its_body(body, needs):
    assert needs_of(call(body)) == needs


# -- from configuration ----------------------------------------------------------------------------------------------


def table(providers: dict[str, Provider], models: dict[str, Model]) -> OfferTable:
    return OfferTable(
        {name: row.models for name, row in providers.items()},
        models=models,
        price=lambda *_: (None, True),
        rows=providers,
    )


def found(offers: OfferTable, model: str = "m") -> list[Offer]:
    return [*offers.find(model)]


def test_an_offer_knows_what_the_rows_say():
    rows = {
        "a": Provider(adapter="x", models=("m",), weight=3, priority=2, tags=("zdr",), lacks=("audio",)),
        "b": Provider(adapter="x", models=("m",)),
    }
    model = Model(weights={"b": 7}, priorities={"a": 0}, lacks=("vision", "audio"), context_tokens=9)

    first, second = found(table(rows, {"m": model}))

    assert (first.weight, first.priority, first.tags, first.lacks) == (3, 0, ("zdr",), ("audio", "vision"))
    assert (second.weight, second.priority, second.tags, second.lacks) == (7, 0, (), ("vision", "audio"))
    assert first.context_tokens == second.context_tokens == 9
    assert first.timeouts is None


def test_a_model_s_timeouts_lie_over_its_provider_s():
    rows = {"a": Provider(adapter="x", models=("m",), timeouts=Timeouts(connect_s=1.0, idle_s=2.0))}

    (only,) = found(table(rows, {"m": Model(timeouts=ModelTimeouts(idle_s=9.0))}))

    assert only.timeouts == Timeouts(connect_s=1.0, idle_s=9.0)


def test_the_row_for_all_models_holds_for_those_without_one():
    rows = {"a": Provider(adapter="x", models=("*",))}

    offers = table(rows, {"*": Model(lacks=("vision",)), "own": Model()})

    assert found(offers, "other")[0].lacks == ("vision",)
    assert found(offers, "own")[0].lacks == ()


def test_the_longest_answer_is_known_where_it_is_known_of_all():
    known = {"m": (offer("a", output_tokens_max=100), offer("b", output_tokens_max=200))}
    assert menus(known).find("m", CHAT).longest_tokens == 200
    half = {"m": (offer("a", output_tokens_max=100), offer("b"))}
    assert menus(half).find("m", CHAT).longest_tokens is None


# -- what there is money for -----------------------------------------------------------------------------------------


def cost(each: Offer) -> int:
    return 0 if each.free else each.price.input_mtok_nanos


def dear_and_cheap():
    row = Model(fallbacks=("n",), context_fallbacks=("p",), policy_fallbacks=("n", "p"), hedge=True)
    offers = {
        "m": (priced("dear", 100), priced("cheap", 30)),
        "n": (priced("cheap", 20, model="n"), priced("dear", 90, model="n")),
        "p": (priced("cheap", 60, model="p"),),
    }
    return menus(offers, {"m": row}).find("m", CHAT)


def test_what_there_is_no_money_for_is_on_no_part_of_a_menu():
    menu = afford(dear_and_cheap(), cost, room_nanos=59)

    assert [(each.model, each.provider) for each in menu.offers] == [("m", "cheap"), ("n", "cheap")]
    assert (providers_of(menu), menu.hedge, menu.context) == (["cheap"], True, ())
    assert [providers_of(group) for group in (*menu.spare, *menu.policy)] == [["cheap"], ["cheap"]]


def test_a_fallback_that_there_is_money_for_takes_over():
    menu = afford(dear_and_cheap(), cost, room_nanos=25)

    assert [(each.model, each.provider) for each in menu.offers] == [("n", "cheap")]
    assert menu.spare == ()


@pytest.mark.parametrize("room_nanos", [-5, 19, 100])
def test_where_nothing_or_everything_fits_there_is_nothing_to_leave_out(room_nanos):
    assert afford(dear_and_cheap(), cost, room_nanos=room_nanos) is None


def test_what_is_free_fits_into_debts():
    menu = afford(menus({"m": (priced("a", 1), B)}).find("m", CHAT), cost, room_nanos=-5)

    assert providers_of(menu) == ["b"]


def test_a_model_for_long_prompts_alone_is_no_fallback_for_the_poor():
    made = menus({"m": (priced("a", 9),), "p": (B,)}, {"m": Model(context_fallbacks=("p",))})

    assert afford(made.find("m", CHAT), cost, room_nanos=5) is None
