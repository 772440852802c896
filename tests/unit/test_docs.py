"""The pages: links and paths in them lead somewhere, and code cites headings that exist."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import click
import pytest

from tproxy.cli import commands
from tproxy.cli.hook import FLAGS, VALUES

ROOT = Path(__file__).parents[2]

LINK = re.compile(r"\]\(([^)\s]+)\)")
# In backticks, a word that begins with a folder of this repository and holds no placeholder.
PATH = re.compile(r"`((?:tproxy|tests|docs|bench|drivers|vagrant|etc|\.ci)/[a-z0-9_./-]*)`")
# A call of the command in a page's code: its first word, and the rest up to the next command.
CALL = re.compile(r"(?<![\w./-])tproxy (?:--debug )?([a-z]+(?:-[a-z]+)*)([^&;|\n]*)")
# A page, and the heading behind it. What begins with a small letter can be the rest of a sentence.
CITATION = re.compile(r"docs/([\w/-]+\.md)(?:, ([A-Z].{0,60}))?")


def pages() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    # Without git, as in an unpacked archive: those that are written for people first.
    found = [ROOT / name for name in listed] or [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    return sorted(page for page in found if page.exists())


@cache
def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.+?)\s*$", page.read_text(), re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page, made of its headings as GitHub and GitLab do it."""
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings(page)}


def sources() -> list[Path]:
    folders = ("tproxy", "tests", "bench", "drivers", "etc", "vagrant", ".ci")
    others = ("Makefile", "pyproject.toml")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    kept = (
        path for path in files if path.suffix not in (".pyc", ".json") and path.resolve() != Path(__file__)
    )
    return sorted([*kept, *(ROOT / name for name in others)])


def as_one_line(path: Path) -> str:
    """The text of a source file, with citations that are wrapped, in a comment or docstring, in one line."""
    return re.sub(r"\s*\n[\s#]*", " ", path.read_text(errors="replace"))


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for target in LINK.findall(page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue  # another site
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_of_the_repository_that_a_page_names_exists(page: Path) -> None:
    missing = [name for name in PATH.findall(page.read_text()) if not (ROOT / name).exists()]
    assert not missing


def test_code_cites_pages_and_headings_that_exist() -> None:
    wrong = []
    for file in sources():
        for name, said in CITATION.findall(as_one_line(file)):
            page = ROOT / "docs" / name
            if not page.exists():
                wrong.append(f"{file.relative_to(ROOT)}: docs/{name}")
            elif said and not said.startswith(tuple(headings(page))):
                wrong.append(f"{file.relative_to(ROOT)}: docs/{name}, {said}")
    assert not wrong


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_messages_that_troubleshooting_quotes_are_those_of_the_code() -> None:
    """First cells have symptoms. What is quoted there, holds a blank and is no command is a message."""
    rows = re.findall(r"^\| (.+?) \|", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    quoted = [each for row in rows for each in re.findall(r"`([^`]+)`", row) if " " in each]
    messages = [each for each in quoted if not each.startswith(("hook ", "nft ", "tproxy ", "networks: "))]
    modules = [*(ROOT / "tproxy").rglob("*.py"), *(ROOT / "drivers").rglob("*.py")]
    code = "\n".join(path.read_text() for path in modules)
    unknown = [each for each in messages if any(part.strip() not in code for part in each.split("…"))]
    assert messages
    assert not unknown


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_that_a_page_shows_exist(page: Path) -> None:
    text = page.read_text()
    code = [*re.findall(r"`([^`\n]+)`", text), *re.findall(r"^    (.*)$", text, re.MULTILINE)]
    unknown = []
    for name, rest in CALL.findall(re.sub(r"(?m)(^|\s)#.*$", "", "\n".join(code))):
        known = options(name, rest.split())
        if known is None:
            unknown.append(f"tproxy {name}")
        else:
            used = re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest)
            unknown += [f"tproxy {name} {each}" for each in used if each not in {*known, "--help"}]
    assert not unknown


def options(name: str, words: list[str]) -> set[str] | None:
    """The options of a command; None when there is no such command."""
    if name == "hook":
        return {*FLAGS, *VALUES}
    context = click.Context(commands.cli)
    found = commands.cli.get_command(context, name)
    for word in words:
        if not isinstance(found, click.Group) or not word.islower() or word.startswith("-"):
            break
        found = found.get_command(context, word)
    return {option for each in found.params for option in each.opts} if found else None
