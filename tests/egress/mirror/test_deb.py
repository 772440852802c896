"""The mirror of Debian repositories, with apt as client."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from tests.egress.asking import expire, get
from tests.egress.debian import Apt, Repository
from tests.egress.running import LOOPBACK, Running, running
from tests.egress.upstream import Site
from tproxy.egress.mirror.settings import Settings
from tproxy.egress.model import Artifact, Caller, Verdict


@pytest.fixture
def repository(upstream: Site, tmp_path: Path) -> Iterator[Repository]:
    found = Repository(upstream, tmp_path / "upstream")
    yield found
    found.close()


@pytest.fixture
def settings(tmp_path: Path, repository: Repository) -> Settings:
    return Settings(tmp_path / "store", deb=(repository.url,), inner=LOOPBACK)


@pytest.fixture
def mirror(settings: Settings) -> Iterator[Running]:
    with running(settings) as found:
        yield found


@pytest.fixture
def apt(mirror: Running, repository: Repository, tmp_path: Path) -> Apt:
    return Apt(tmp_path / "apt", source(mirror, repository))


def source(mirror: Running, repository: Repository, suite: str = "bookworm") -> str:
    name = repository.url.partition("://")[2]
    return f"deb [signed-by={repository.key}] {mirror.url}deb/{name} {suite} main"


def test_apt_installs_and_the_second_time_without_upstream(
    mirror: Running, repository: Repository, apt: Apt, tmp_path: Path
) -> None:
    base = repository.add("bookworm", "base", "1.0")
    tool = repository.add("bookworm", "tool", "1:2.0", depends="base")
    repository.publish("bookworm")
    apt.update()
    assert apt.download("tool") == {"base_1.0_all.deb": base, "tool_1%3a2.0_all.deb": tool}
    purls = {event.purl for event in mirror.events}
    assert "pkg:deb/debian/base@1.0?arch=all" in purls
    assert repository.site.count("by-hash") >= 1
    repository.site.stop()
    mirror.run(expire(mirror))
    again = Apt(tmp_path / "again", source(mirror, repository))
    again.update()
    assert set(again.download("tool").values()) == {base, tool}


def test_indexes_change_together(mirror: Running, repository: Repository, apt: Apt, tmp_path: Path) -> None:
    """Upstream is in the middle of a change: its InRelease is new, and one index is missing yet."""
    old = repository.add("bookworm", "tool", "1.0")
    repository.publish("bookworm", by_hash=False)
    apt.update()
    new = repository.add("bookworm", "tool", "2.0")
    before = dict(repository.site.pages)
    repository.publish("bookworm", by_hash=False)
    missing = [path for path in repository.site.pages if "Packages" in path]
    after = {path: repository.site.pages[path] for path in missing}
    for path in missing:
        repository.site.pages[path] = before[path]  # of yesterday
    mirror.run(expire(mirror))
    apt.update()
    assert list(apt.download("tool").values()) == [old]
    for path in missing:
        if "binary-amd64" in path:
            del repository.site.pages[path]
        else:
            repository.site.pages[path] = after[path]  # this one is new already
    mirror.run(expire(mirror))
    for name in ("one", "two"):
        Apt(tmp_path / name, source(mirror, repository)).update()
        mirror.run(expire(mirror))
    heads = {
        path: repository.site.pages.pop(path) for path in list(repository.site.pages) if "Release" in path
    }
    mirror.run(expire(mirror))
    apt.update()
    repository.site.pages.update(heads)
    repository.site.pages.update(after)
    mirror.run(expire(mirror))
    apt.update()
    assert new in apt.download("tool").values()


def test_an_index_of_the_old_set_is_still_served_by_its_hash(mirror: Running, repository: Repository) -> None:
    repository.add("bookworm", "tool", "1.0")
    repository.publish("bookworm")
    name = repository.url.partition("://")[2]
    old = repository.indexes["main/binary-amd64/Packages.gz"]
    path = f"{mirror.url}deb/{name}dists/bookworm/main/binary-amd64/"
    by_hash = f"{path}by-hash/SHA256/{hashlib.sha256(old).hexdigest()}"
    assert get(f"{path}Packages.gz")[1] == old
    repository.add("bookworm", "tool", "2.0")
    repository.publish("bookworm")
    mirror.run(expire(mirror))
    assert get(f"{path}Packages.gz")[1] == repository.indexes["main/binary-amd64/Packages.gz"]
    assert get(by_hash)[1] == old


def test_a_package_that_no_known_index_lists_is_not_served(mirror: Running, repository: Repository) -> None:
    repository.add("bookworm", "tool", "1.0")
    repository.publish("bookworm")
    name = repository.url.partition("://")[2]
    assert get(f"{mirror.url}deb/{name}pool/main/t/tool/tool_1.0_all.deb")[0] == 404
    assert repository.site.count("pool/") == 0


def test_a_changed_package_of_upstream_is_not_served(
    mirror: Running, repository: Repository, apt: Apt
) -> None:
    repository.add("bookworm", "tool", "1.0", size=90_000)
    repository.publish("bookworm")
    apt.update()
    path = next(path for path in repository.site.pages if path.endswith("tool_1.0_all.deb"))
    repository.site.put(path, b"evil" * 100)
    apt.download("tool", fails=True)
    assert "allowed" not in {event.verdict for event in mirror.events if event.kind == "deb" and event.name}


def test_only_packages_of_allowed_suites_are_served(
    mirror: Running, repository: Repository, apt: Apt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.add("bookworm", "tool", "1.0")
    repository.add("sid", "tool", "9.0")
    repository.publish("bookworm")
    repository.publish("sid")

    def judge(caller: Caller, artifact: Artifact, suites: Collection[str] | None) -> Verdict:
        wanted = {artifact.version} if not artifact.name else set(suites or ())
        return Verdict("bookworm" in wanted, "egress.yaml:3", "not a suite of the rule")

    open_to_all = Apt(tmp_path / "all", source(mirror, repository, "sid"))
    open_to_all.update()  # so the mirror knows what sid lists
    monkeypatch.setattr(mirror.mirror.library, "_judge", judge)
    apt.update()
    assert list(apt.download("tool")) == ["tool_1.0_all.deb"]
    assert "403" in Apt(tmp_path / "sid", source(mirror, repository, "sid")).update(fails=True)
    name = repository.url.partition("://")[2]
    assert get(f"{mirror.url}deb/{name}pool/main/t/tool/tool_9.0_all.deb")[0] == 403
