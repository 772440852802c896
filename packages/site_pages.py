"""A hook of MkDocs (mkdocs.yml): pages and files of this repository that are not in docs/.

Pages stay as they are read in the repository, with links to each other and to files there. Here the same
links lead to pages of the site, and to copies of the files, so that the site is whole without the repository.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]

# Pages outside of docs/, and what they are called in the site.
PAGES = {
    "README.md": "index.md",
    "docs/README.md": "pages.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "vulnerabilities.md",
    "vagrant/README.md": "vagrant.md",
    "drivers/ansible/roles/tproxy/README.md": "ansible.md",
}

# The heading of ``nav`` for all other pages.
REST = "Reference"

# The page that lists the copied files. Links to folders lead there.
LISTING = "files.md"
FOLDERS = ("etc", "drivers", "vagrant")

_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
# Python-Markdown wants four columns for a list in a list, and pages have three.
_NESTED = re.compile(r"^   (?=[*-] )", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put pages that ``nav`` does not name below ``REST``, so that none is lost."""
    named = {*_named(config.nav)}
    pages = sorted(str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md"))
    rest = next(each[REST] for each in config.nav or () if REST in each)
    rest += [page for page in pages if page not in named and f"docs/{page}" not in PAGES]
    return config


def _named(nav: Any) -> Iterator[str]:
    for each in nav.values() if isinstance(nav, dict) else nav:
        if isinstance(each, str):
            yield each
        else:
            yield from _named(each)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and files."""
    for name, called in PAGES.items():
        files.append(File.generated(config, called, content=(ROOT / name).read_text()))
    copied = _copied()
    for name, called in copied.items():
        files.append(File.generated(config, called, content=(ROOT / name).read_bytes()))
    lines = [f"* [{name}]({called})\n" for name, called in copied.items()]
    text = "# Files that come with it\n\nAs they are in the repository, each as text.\n\n" + "".join(lines)
    files.append(File.generated(config, LISTING, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Have links lead to pages and files of the site."""
    called = page.file.src_uri
    name = next((name for name, each in PAGES.items() if each == called), f"docs/{called}")
    if called == LISTING:
        return markdown
    copied = _copied()

    def link(found: re.Match[str]) -> str:
        return found[1] + _target(name, called, found[2], copied) + found[3]

    return _NESTED.sub("    ", _LINK.sub(link, markdown))


def _target(name: str, called: str, link: str, copied: dict[str, str]) -> str:
    """Return where a link of the page ``name`` leads, which the site has as ``called``."""
    path, mark, anchor = link.partition("#")
    if not path or re.match(r"[a-z]+:", link):
        return link
    target = posixpath.normpath(posixpath.join(posixpath.dirname(name), path))
    if target in PAGES:
        there = PAGES[target]
    elif target in copied:
        there = copied[target]
    elif target.startswith("docs/"):
        there = target.removeprefix("docs/")
    elif (ROOT / target).is_dir():
        there = LISTING
    else:
        return link
    return posixpath.relpath(there, posixpath.dirname(called) or ".") + mark + anchor


def _copied() -> dict[str, str]:
    """Return the files to copy, by their paths. Browsers show what ends in .txt."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    names = [str(path.relative_to(ROOT)) for path in found if not {"__pycache__", ".vagrant"} & {*path.parts}]
    kept = [name for name in sorted(names) if name not in PAGES and not name.endswith(".md")]
    return {name: f"files/{name}.txt" for name in ["LICENSE", *kept]}
