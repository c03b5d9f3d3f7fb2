"""The repository's address, which stands in `_config.yml` alone, and every link made of it.

    repository: {url: "https://github.com/OWNER/NAME", branch: main}

Empty, as it comes: the pages then have no button or link that needs an address.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

import yaml

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = "notebooks"
"""The branch on which the site's workflow puts every page as an .ipynb file: Colab opens no other
kind (tools/notebooks.py)."""


@dataclass(frozen=True)
class Repository:
    """A repository on GitHub, or on a GitLab, whose paths differ."""

    url: str
    branch: str = "main"
    baseurl: str = ""
    """Where its site is, if not where the host puts it."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"https://[\w.-]+(/[\w.-]+){2,}", self.url):
            raise ValueError(
                f"_config.yml: repository.url must be https://HOST/OWNER/NAME, got {self.url!r}"
            )

    @property
    def host(self) -> str:
        """`github.com`"""
        return self.url.split("/")[2]

    @property
    def path(self) -> str:
        """`OWNER/NAME`; on a GitLab there may be groups before the name."""
        return "/".join(self.url.split("/")[3:])

    @property
    def is_github(self) -> bool:
        """Not a GitLab."""
        return self.host == "github.com"

    @property
    def site(self) -> str:
        """The address of its Pages, with a slash at the end."""
        if self.baseurl:
            return self.baseurl.rstrip("/") + "/"
        owner, _, name = self.path.partition("/")
        pages = "github.io" if self.is_github else f"{self.host.removesuffix('.com')}.io"
        domain = f"{owner.lower()}.{pages}"
        return f"https://{domain}/" if name.lower() == domain else f"https://{domain}/{name}/"

    def edit(self, file: str) -> str:
        """Where `file` is edited in a browser."""
        between = "" if self.is_github else "/-"
        return f"{self.url}{between}/edit/{quote(self.branch)}/{quote(file)}"

    def issue(self, title: str, body: str) -> str:
        """Where an issue is filed that begins with this title and body."""
        if self.is_github:
            return f"{self.url}/issues/new?{urlencode({'title': title, 'body': body})}"
        asked = {"issue[title]": title, "issue[description]": body}
        return f"{self.url}/-/issues/new?{urlencode(asked)}"

    def binder(self, file: str) -> str:
        """A notebook on mybinder.org."""
        if self.is_github:
            where = f"gh/{self.path}"
        elif self.host == "gitlab.com":
            where = f"gl/{quote(self.path, safe='')}"
        else:
            where = f"git/{quote(self.url, safe='')}"
        asked = urlencode({"urlpath": f"lab/tree/{file}"})
        return f"https://mybinder.org/v2/{where}/{quote(self.branch, safe='')}?{asked}"

    def colab(self, page: str) -> str:
        """A page as a notebook on Colab; empty if it is not on GitHub, as Colab asks."""
        if not self.is_github:
            return ""
        where = f"{self.path}/blob/{NOTEBOOKS}/{page}.ipynb"
        return f"https://colab.research.google.com/github/{where}"

    def codespace(self) -> str:
        """The repository in Codespaces; empty if it is not on GitHub."""
        return f"https://codespaces.new/{self.path}" if self.is_github else ""


def repository(config: Path = ROOT / "_config.yml") -> Repository | None:
    """What the configuration says; None: it names no address.

    Raises:
        ValueError: if what it names is no repository's address.
    """
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    named = settings.get("repository") or {}
    if not named.get("url"):
        return None
    baseurl = (settings.get("html") or {}).get("baseurl") or ""
    return Repository(named["url"].rstrip("/"), named.get("branch") or "main", baseurl)
