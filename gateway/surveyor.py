"""Asks providers which models they have, in the background, and Hugging Face what it knows of the open ones.

Rules:
- Whose turn it is stands in PostgreSQL: any number of surveyors share the work, and a claim is a lease by itself.
- A provider is asked at its configured address alone, by its own adapter with its first key; no redirect is followed,
  and nothing in an answer says where to ask next but the number of its page there.
- Answers are bounded in size and in pages. One that can't be had, or can't be read, changes nothing: it is asked
  again later, each time twice as much later, up to a bound.
- A list that says the same as before is not written again, and nobody is told.
"""

import asyncio
import logging
import urllib.parse
from collections.abc import Mapping
from typing import Final

from gateway.api import Listing, Origin, UpstreamRequest, parse_base_url
from gateway.catalogue.listing import MODELS_MAX, ListedModel, read_page
from gateway.catalogue.lists import ListStore, digest_of
from gateway.catalogue.metrics import MetricStore, read_metrics
from gateway.catalogue.overrides import CHANNEL
from gateway.catalogue.plausible import judge_prices
from gateway.catalogue.prices import Catalogue
from gateway.errors import StoreUnavailable, UpstreamError
from gateway.infra.clock import Clock
from gateway.infra.redis import Redis
from gateway.registry import Provider
from gateway.settings import Catalogue as CatalogueSettings
from gateway.upstream.client import UpstreamClient

log = logging.getLogger(__name__)

#: Between two looks at whose turn it is.
ROUND_S: Final = 5.0
LEASE_S: Final = 300.0
#: What one survey of a provider may take.
ASK_TIMEOUT_S: Final = 60.0
BACKOFF_S: Final = 60.0
ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
PAGES_MAX: Final = 20
METRICS_BYTES_MAX: Final = 1024 * 1024
METRICS_S: Final = 86400.0
#: Models that Hugging Face does not know.
UNKNOWN_S: Final = 30 * 86400.0
FAILED_S_MAX: Final = 30.0
ERROR_CHARS_MAX: Final = 200
#: Whose names of models are those of repositories.
_OPEN: Final = frozenset({"chutes", "featherless", "huggingface"})


class _NoList(Exception):
    """The provider's answer is of no use."""


class _Unlisted(Exception):
    """The provider has no list: nothing is wrong with that."""


class Surveyor:
    """Spawn `survey_forever`, or call `survey_once`."""

    def __init__(
        self,
        lists: ListStore,
        metrics: MetricStore,
        *,
        providers: Mapping[str, Provider],
        catalogue: Catalogue,
        catalogue_ids: Mapping[str, str],
        client: UpstreamClient,
        redis: Redis,
        clock: Clock,
        settings: CatalogueSettings,
    ) -> None:
        self._lists = lists
        self._metrics = metrics
        self._providers = {
            name: provider
            for name, provider in providers.items()
            if isinstance(provider.adapter, Listing) and settings.lists
        }
        self._catalogue = catalogue
        self._catalogue_ids = catalogue_ids
        self._client = client
        self._redis = redis
        self._clock = clock
        self._settings = settings
        self._hugging_face: tuple[Origin, bytes] | None = None
        if settings.huggingface:
            self._hugging_face = parse_base_url(settings.huggingface_url)

    async def survey_forever(self) -> None:
        if not self._providers:
            return
        failed_s = 0.0
        while True:
            try:
                await self.survey_once()
                failed_s = 0.0
            except StoreUnavailable as error:
                failed_s = min(FAILED_S_MAX, max(1.0, failed_s * 2))
                log.warning("asking for models waits for a store: %s", error.detail)
            await asyncio.sleep(max(ROUND_S, failed_s))

    async def survey_once(self) -> int:
        """Ask whose turn it is; how many that were.

        Raises:
            StoreUnavailable
        """
        await self._lists.know(self._providers)
        due = await self._lists.claim(self._providers, lease_s=LEASE_S)
        changed = [await self._survey(provider, digest, failures) for provider, digest, failures in due]
        if any(changed):
            await self._redis.execute("PUBLISH", CHANNEL, b"lists")
        if self._hugging_face is not None:
            for hugging_face_id in await self._metrics.claim(lease_s=LEASE_S):
                await self._measure(hugging_face_id, *self._hugging_face)
        return len(due)

    async def _survey(self, name: str, digest: bytes | None, failures: int) -> bool:
        """Whether the provider says something else than before."""
        settings = self._settings
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                listed = await self._ask(self._providers[name])
        except _Unlisted:
            await self._lists.keep(name, next_s=settings.refresh_s)
            return False
        except (UpstreamError, TimeoutError, _NoList) as error:
            why = getattr(error, "detail", None) or str(error) or type(error).__name__
            after_s = min(settings.refresh_s, BACKOFF_S * 2 ** min(failures, 16))
            log.info("%s does not say which models it has: %s", name, why)
            await self._lists.postpone(name, why[:ERROR_CHARS_MAX], next_s=after_s)
            return False
        catalogue_id = self._catalogue_ids.get(name, "")
        models = judge_prices(listed, self._catalogue, catalogue_id, at=self._clock.now())
        for model in models:
            if model.refused:
                log.warning("the price that %s lists for %s is not used: %s", name, model.id, model.refused)
        if self._hugging_face is not None:
            is_open = catalogue_id in _OPEN or name in _OPEN
            await self._metrics.know(model.hugging_face_id or (model.id if is_open else "") for model in models)
        if digest_of(models) == digest:
            await self._lists.keep(name, next_s=settings.refresh_s)
            return False
        await self._lists.put(name, models, next_s=settings.refresh_s)
        log.info("%s has %d models", name, len(models))
        return True

    async def _ask(self, provider: Provider) -> tuple[ListedModel, ...]:
        adapter = provider.adapter
        assert isinstance(adapter, Listing)
        found: dict[str, ListedModel] = {}
        page = ""
        for _ in range(PAGES_MAX):
            request = adapter.listing(page)
            if request is None:
                if not page:
                    raise _Unlisted
                break
            try:
                body = await self._fetch(request, provider, ANSWER_BYTES_MAX)
                # A second for the largest, in which the books have other work.
                read = await asyncio.to_thread(read_page, body)
            except ValueError as error:
                raise _NoList(str(error)) from error
            found |= {model.id: model for model in read.models}
            if not read.following or read.following == page or len(found) >= MODELS_MAX:
                break
            page = read.following
        if not found:
            raise _NoList("it lists no models")
        return tuple(found[model_id] for model_id in sorted(found))[:MODELS_MAX]

    async def _fetch(self, request: UpstreamRequest, provider: Provider, most_bytes: int) -> bytes:
        response = await self._client.send(request, timeouts=provider.timeouts)
        try:
            if response.head.status != 200:
                raise _NoList(f"status {response.head.status}")
            return await response.read(most_bytes)
        finally:
            response.close()

    async def _measure(self, hugging_face_id: str, origin: Origin, path: bytes) -> None:
        """Ask Hugging Face about one model. Whatever goes wrong, the next turn comes anyway."""
        token = self._settings.huggingface_token
        headers = [(b"accept", b"application/json"), (b"accept-encoding", b"identity")]
        if token is not None:
            headers.append((b"authorization", b"Bearer " + token.reveal().encode("ascii", "replace")))
        request = UpstreamRequest(
            method=b"GET",
            origin=origin,
            target=path + b"/api/models/" + urllib.parse.quote(hugging_face_id).encode("ascii"),
            headers=headers,
            body=b"",
        )
        provider = next(iter(self._providers.values()))
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                metrics = read_metrics(await self._fetch(request, provider, METRICS_BYTES_MAX))
        except (UpstreamError, TimeoutError, ValueError, _NoList) as error:
            if str(error) in {"status 401", "status 404"}:
                # It says so of what is private and of what never was.
                await self._metrics.put(hugging_face_id, None, next_s=UNKNOWN_S)
            return
        await self._metrics.put(hugging_face_id, metrics, next_s=METRICS_S)
