"""What the stages work with: made once for each worker by `app.py`, passed in, never imported as a global."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from gateway.bodies import Bodies
from gateway.exchange import Exchange, Offer
from gateway.hooks import Hooks
from gateway.infra.clock import Clock
from gateway.infra.logs import AccessLog
from gateway.infra.metrics import Observations
from gateway.infra.tasks import TaskGroup
from gateway.kernel.answers import Answers
from gateway.kernel.charging import Charging
from gateway.kernel.history import History
from gateway.kernel.holds import Holds
from gateway.kernel.keys import KeyRing
from gateway.kernel.loader import Loader
from gateway.kernel.local_journal import LocalJournal
from gateway.kernel.marks import Marks
from gateway.kernel.objects import Objects
from gateway.kernel.offers import OfferTable
from gateway.kernel.security import SecurityLog
from gateway.kernel.unsettled import Unsettled
from gateway.kernel.verbs import Verbs
from gateway.keychains import Keychains
from gateway.registry import Provider
from gateway.routing.router import Router
from gateway.settings import Settings
from gateway.telemetry import Telemetry
from gateway.upstream.client import UpstreamClient

#: A stage with everything behind it.
Handler = Callable[[Exchange], Awaitable[None]]


@dataclass(slots=True)
class Deps:
    """The parts of one worker. `offers` and `providers` are swapped whole when the configuration changes."""

    settings: Settings
    clock: Clock
    keys: KeyRing
    #: The provider keys that accounts bring themselves.
    keychains: Keychains
    offers: OfferTable
    providers: Mapping[str, Provider]
    router: Router
    client: UpstreamClient
    ledger: Verbs
    #: Where ends of requests go that Redis can't take.
    journal: LocalJournal
    unsettled: Unsettled
    holds: Holds
    loader: Loader
    #: What became of earlier requests.
    history: History
    telemetry: Telemetry
    #: How long admission took.
    admit_seconds: Observations
    access_log: AccessLog
    security: SecurityLog
    tasks: TaskGroup
    #: Whose objects are whose, and what is charged when a provider has done its work.
    objects: Objects
    charging: Charging
    #: What is held of what callers send.
    bodies: Bodies
    #: Makes a request id.
    new_id: Callable[[], str]
    #: The plugins; None where none is on.
    hooks: Hooks | None = None
    #: How far open streams have come; None where nobody would look.
    marks: Marks | None = None
    #: Answers that are kept; None where none are.
    answers: Answers | None = None

    def provider_of(self, offer: Offer) -> Provider:
        """Who serves an offer, with the credential that it is used with."""
        if offer.own is None:
            return self.providers[offer.provider]
        assert offer.own.provider is not None, "a key that can't be used is on no menu"
        return offer.own.provider
