"""Where makers and sellers of models are at home, and their logos: the rows of `sites.toml`.

Nothing is fetched from there: pages of ours name addresses, and a reader's browser loads the logo.
"""

import tomllib
from functools import cache
from importlib import resources
from typing import Final
from urllib.parse import quote, urlsplit

import msgspec

FILE_NAME: Final = "sites.toml"


class Site(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of one."""

    name: str = ""
    site: str | None = None
    privacy: str | None = None
    terms: str | None = None
    status: str | None = None

    def logo_url(self, template: str) -> str | None:
        """Where its logo is, by the setting `catalogue.logo_url`; None where nobody knows its site."""
        domain = "" if self.site is None else (urlsplit(self.site).hostname or "").removeprefix("www.")
        return template.replace("{domain}", quote(domain)) if template and domain else None


@cache
def read_sites() -> dict[str, Site]:
    """All rows."""
    text = resources.files("gateway.catalogue").joinpath(FILE_NAME).read_text("utf-8")
    return msgspec.convert(tomllib.loads(text), dict[str, Site])


def site_of(slug: str) -> Site:
    """The row of a maker or seller; where there is none, one with no more than a name."""
    return read_sites().get(slug.lower()) or Site(name=slug)
