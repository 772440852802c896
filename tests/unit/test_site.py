"""The documentation as a site (``make docs``): built strictly, whole without a server or any other site."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What a browser loads by itself when it shows a page, by tag: the attribute with the address.
LOADED = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src", "object": "data"}
# Links that are only told, and not loaded.
TOLD = {"canonical", "next", "prev", "edit"}


class _Loaded(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("rel") not in TOLD and (address := values.get(LOADED.get(tag, ""))):
            self.found.append(address)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``make docs`` does it."""
    folder = tmp_path_factory.mktemp("site")
    command = (sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder))
    quiet = {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    built = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **quiet}, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


def test_every_page_is_in_the_site(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        called = "pages" if page.name == "README.md" else page.relative_to(ROOT / "docs").with_suffix("")
        assert (site / f"{called}.html").exists()
    assert "gives virtual machines and containers" in (site / "index.html").read_text()
    assert (site / "files/etc/tproxy.yaml.txt").read_bytes() == (ROOT / "etc/tproxy.yaml").read_bytes()


def test_a_browser_loads_nothing_from_another_site(site: Path) -> None:
    loaded: dict[str, Path] = {}
    for page in site.rglob("*.html"):
        parser = _Loaded()
        parser.feed(page.read_text())
        assert parser.found
        loaded |= {each: page for each in parser.found if re.match(r"(\w+:)?//", each)}
        # The theme would load Mermaid's program for a drawing of that kind.
        assert 'class="mermaid"' not in page.read_text()
    assert not loaded
    for sheet in [*site.rglob("*.css"), *site.rglob("*.svg")]:
        text = re.sub(r"/\*.*?\*/", "", sheet.read_text(), flags=re.DOTALL)
        assert not re.search(r"""(url\(|@import|href=)\s*["']?(https?:)?//""", text), sheet


def test_what_pages_load_is_there(site: Path) -> None:
    missing = set()
    for page in site.rglob("*.html"):
        if page.name == "404.html":  # its paths begin at the root of the server
            continue
        parser = _Loaded()
        parser.feed(page.read_text())
        local = [each.partition("?")[0] for each in parser.found if not each.startswith("data:")]
        missing |= {each for each in local if not (page.parent / each).exists()}
    assert not missing


def test_lists_in_lists_stay_lists(site: Path) -> None:
    text = (site / "architecture.html").read_text()
    assert re.search(r"<ul>\s*<li><code>tproxy/watch/guests.py</code>", text)


def test_the_drawing_of_the_packages_has_all_of_them() -> None:
    declared = (ROOT / "pyproject.toml").read_text().partition("\nlayers = [")[2].partition("\n]")[0]
    layers = re.findall(r'"(.*)"', declared)
    assert layers
    drawing = (ROOT / "docs/img/layers.svg").read_text()
    assert [re.findall(r"\w+", each) for each in layers] == [
        re.findall(r"\w+", each) for each in re.findall(r'class="title">(.*?)</text>', drawing)
    ]
