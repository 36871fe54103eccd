"""Whose fault a failure is, and what follows."""

import pytest

from gateway import errors
from gateway.routing.verdict import RULES, Next, Verdict, judge


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (errors.RequestRefused(status=400, blame="caller"), Verdict.CALLER),
        (errors.RequestRefused(status=404, blame="caller"), Verdict.CALLER),
        (errors.RequestRefused(status=404, blame="caller", absent=True), Verdict.ABSENT),
        (errors.RequestRefused(status=400, blame="context"), Verdict.CONTEXT),
        (errors.RequestRefused(status=429, blame="context"), Verdict.CONTEXT),
        (errors.ContentRefused(status=400, blame="policy"), Verdict.POLICY),
        (errors.UpstreamRefused(status=429, blame="provider"), Verdict.THROTTLED),
        (errors.UpstreamRefused(status=500, blame="provider"), Verdict.PROVIDER),
        (errors.UpstreamRefused(status=529, blame="provider"), Verdict.PROVIDER),
        (errors.UpstreamRefused(status=500, blame="something new"), Verdict.PROVIDER),
        (errors.UpstreamCredentials(refused_status=401), Verdict.KEY),
        (errors.UpstreamUnreachable(), Verdict.NETWORK),
        (errors.UpstreamDisconnected(), Verdict.NETWORK),
        (errors.UpstreamTimeout(), Verdict.NETWORK),
        (errors.UpstreamMalformed(), Verdict.NETWORK),
        (errors.UpstreamRedirected(), Verdict.NETWORK),
        (errors.UpstreamSaturated(), Verdict.SATURATED),
        (errors.BadRequest(), Verdict.UNFIT),
        (errors.CallerGone(), Verdict.CALLER),
        (errors.StoreUnavailable(), Verdict.CALLER),
    ],
)
def test_a_failure_has_a_verdict(error, verdict):
    assert judge(error) is verdict


def test_every_verdict_has_a_rule():
    assert RULES.keys() == {*Verdict}


@pytest.mark.parametrize("verdict", Verdict)
def test_only_what_a_provider_did_wrong_opens_its_breaker(verdict):
    assert (RULES[verdict].breaker == "failure") is (verdict in (Verdict.PROVIDER, Verdict.NETWORK))


def test_a_caller_s_mistake_is_tried_nowhere_else():
    assert [verdict for verdict in Verdict if RULES[verdict].next is Next.STOP] == [Verdict.CALLER]
