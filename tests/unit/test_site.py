"""`make site`'s pages: built without a warning, with no link that leads nowhere, and nothing loaded from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import ray_lora
from tests.documents import ROOT

LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "form": "action"}


class Page(HTMLParser):
    """What a page loads, where its links lead, and the places that links may lead to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.loads: set[str] = set()
        self.links: set[str] = set()
        self.places: set[str] = set()
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.places |= {told["id"] or ""} if "id" in told else set()
        if tag in LOADS and told.get(LOADS[tag]):
            self.loads.add(str(told[LOADS[tag]]))
        if tag == "a" and told.get("href"):
            self.links.add(str(told["href"]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a proxy or a host that answers: what a page needs is on this machine."""
    folder = tmp_path_factory.mktemp("site")
    nobody = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", str(folder / "read")]
    done = subprocess.run(
        [*command, str(ROOT / "docs"), str(folder / "site")],
        env={**os.environ, **nobody},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def test_every_page_is_there_and_its_links_lead_somewhere(site: Path) -> None:
    pages = {file: Page(file) for file in site.glob("*.html")}
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} <= {file.stem for file in pages}
    for page in (ROOT / "docs").glob("*.md"):  # Sphinx has pages of its own, of which one would take another's place
        title = re.search(r"^# (.+)$", page.read_text(), re.MULTILINE)
        if title is not None and "`" not in title.group(1):
            assert f"<h1>{title.group(1)}<" in (site / f"{page.stem}.html").read_text(), f"{page.name} is not its page"
    for file, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https"):
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            assert target.exists(), f"{file.name} links to {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].places, f"{file.name} links to {link}"
    menu = {urlsplit(link).path for link in pages[site / "index.html"].links}
    assert {f"{page.stem}.html" for page in (ROOT / "docs").glob("*.md") if page.stem != "index"} <= menu


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    for file in site.rglob("*.html"):
        for loaded in Page(file).loads:
            parts = urlsplit(loaded)
            assert (parts.scheme, parts.netloc) in {("", ""), ("data", "")}, f"{file.name} loads {loaded}"
            assert not parts.path or (file.parent / unquote(parts.path)).exists(), f"{file.name} loads {loaded}"
    for file in site.rglob("*.css"):
        for url in re.findall(r"(?:url\(|@import)\s*['\"]?([^'\")\s;]+)", file.read_text()):
            assert not re.match(r"(https?:)?//", url), f"{file.name} loads {url}"


def test_the_reference_has_every_public_name(site: Path) -> None:
    page = (site / "api.html").read_text()
    documented = set(re.findall(r'<span class="sig-name descname"><span class="pre">(\w+)</span>', page))
    assert set(ray_lora.__all__) - {"__version__"} <= documented
