"""``tproxy egress allow`` and ``deny`` change what is judged, and nothing else of the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tproxy.egress.model import Artifact, Caller
from tproxy.egress.policy import edit, judging, reader
from tproxy.egress.policy.rules import ANY
from tproxy.errors import ConfigError, TproxyError

TEXT = """\
# who may what

mode: dmz  # for now
rules:
  # the builders
  - networks: [build]
    pypi:
      - requests  # asked for by Ann
      - "django>=4"
    get: ['https://host.example/*']
  # nobody wants these
  - networks: ["*"]
    deny: true
    pypi: [evil, worse]  # both

tunnel: []  # none yet
"""


def allowed(path: Path, project: str, network: str, version: str = "") -> bool:
    return judging.artifact(
        reader.load(path), Caller(network=network), Artifact("pypi", project, version)
    ).allowed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "egress.yaml"
    path.write_text(TEXT)
    return path


def test_a_package_is_allowed_to_one_network_only(path: Path) -> None:
    assert edit.set_pypi(path, "flask", "build", allow=True)
    assert allowed(path, "flask", "build")
    assert not allowed(path, "flask", "lab")


def test_allowing_again_changes_nothing(path: Path) -> None:
    edit.set_pypi(path, "flask", "build", allow=True)
    before = path.read_bytes(), path.stat().st_ino
    assert not edit.set_pypi(path, "flask", "build", allow=True)
    assert (path.read_bytes(), path.stat().st_ino) == before


def test_an_earlier_deny_is_overridden_for_the_network_only(path: Path) -> None:
    edit.set_pypi(path, "evil", "build", allow=True)
    assert allowed(path, "evil", "build")
    assert not allowed(path, "evil", "lab")
    assert not allowed(path, "worse", "build")


def test_a_change_of_mind_does_not_make_the_file_grow(path: Path) -> None:
    edit.set_pypi(path, "flask", "build", allow=True)
    edit.set_pypi(path, "flask", "build", allow=False)
    first = path.read_text()
    for allow in (True, False):
        edit.set_pypi(path, "flask", "build", allow=allow)
        assert allowed(path, "flask", "build") == allow
    assert path.read_text() == first


def test_versions_can_be_named(path: Path) -> None:
    edit.set_pypi(path, "flask>=3", "build", allow=True)
    assert allowed(path, "flask", "build", "3.1")
    assert not allowed(path, "flask", "build", "2.0")


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["requests", "django", "evil", "flask"]),
            st.sampled_from(["build", "lab", ANY]),
            st.booleans(),
        ),
        max_size=6,
    )
)
def test_any_edits_do_what_they_say_and_keep_all_comments(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[str, str, bool]]
) -> None:
    path = tmp_path_factory.mktemp("edit") / "egress.yaml"
    path.write_text(TEXT)
    for project, network, allow in edits:
        edit.set_pypi(path, project, network, allow=allow)
        networks = ["build", "lab"] if network == ANY else [network]
        assert [allowed(path, project, each, "5") for each in networks] == [allow] * len(networks)
    text = path.read_text()
    comments = [line.partition("#")[2] for line in TEXT.splitlines() if "#" in line]
    assert all("#" + each in text for each in comments)


BUILD = "networks: [ build ]   # three spaces"
STYLES = {
    "no rules": "mode:   dmz  # aligned\n",
    "nothing in rules": "rules:\nmode: dmz\n",
    "an empty list": "rules: []  # none\nmode: dmz\n",
    "not indented": "rules:\n# builders\n"
    f"- {BUILD}\n  pypi:\n    - requests   # Ann\n\n    # numbers\n    - 'numpy'\n",
    "in one line": "rules:\n  - {networks: [build],pypi: [requests,numpy]}\ntunnel:  [a.example]\n",
    "flow": "rules: [{networks: [build], pypi: [requests]}, {networks: [lab], pypi: [a]}]\n",
    "a word": "rules:\n  - networks: build\n    pypi: requests\n",
    "line ends of Windows": "rules:\r\n  - networks: [build]\r\n    pypi:\r\n      - requests\r\n# end\r\n",
    "no line end": "rules:\n  - networks: [build]\n    pypi:\n      - requests",
    "aliases": "rules:\n  - networks: [lab]\n    pypi: &ours\n      - requests\n"
    "  - {networks: [build], pypi: *ours}\n",
}


@pytest.mark.parametrize("text", STYLES.values(), ids=STYLES)
@pytest.mark.parametrize("network", ["build", "a b", ANY])
def test_however_a_file_is_written_an_edit_adds_to_it_and_changes_nothing_else(
    path: Path, text: str, network: str
) -> None:
    path.write_bytes(text.encode())
    before = {each: allowed(path, "requests", each) for each in ("build", "lab", "other")}
    for project in ("flask", "django>=4,<6"):
        edit.set_pypi(path, project, network, allow=True)
        where = "any" if network == ANY else network
        assert allowed(path, project.partition(">")[0], where, "5")
    assert {each: allowed(path, "requests", each) for each in ("build", "lab", "other")} == before
    rest = iter(path.read_bytes().decode())
    assert all(each in rest for each in text)  # what was there is there, in its order


def test_what_was_added_can_be_taken_back_without_a_trace(path: Path) -> None:
    for style in ("not indented", "in one line", "flow"):
        path.write_text(STYLES[style])
        edit.set_pypi(path, "flask", "build", allow=True)
        edit.set_pypi(path, "flask", "build", allow=False)
        assert "flask" in path.read_text()
        edit.set_pypi(path, "flask", "build", allow=True)
        edit.set_pypi(path, "numpy", "build", allow=False)
        assert (allowed(path, "flask", "build"), allowed(path, "numpy", "build")) == (True, False)
        assert ("# numbers" in path.read_text()) == (style == "not indented")


def test_rules_that_are_aliases_are_left_to_people(path: Path) -> None:
    path.write_text("rules:\n  - &one {networks: [build], pypi: [requests]}\n  - *one\n")
    with pytest.raises(ConfigError, match="edit the file by hand"):
        edit.set_pypi(path, "flask", "build", allow=True)


def test_mode_and_owner_of_the_file_stay(path: Path) -> None:
    path.chmod(0o640)
    edit.set_pypi(path, "flask", "build", allow=True)
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(path.parent) == ["egress.yaml"]


def test_a_file_that_is_not_there_is_made(tmp_path: Path) -> None:
    edit.set_pypi(tmp_path / "egress.yaml", "flask", "build", allow=True)
    assert allowed(tmp_path / "egress.yaml", "flask", "build")


def test_a_broken_file_is_not_touched(path: Path) -> None:
    path.write_text("rules: 5\n")
    with pytest.raises(ConfigError):
        edit.set_pypi(path, "flask", "build", allow=True)
    assert path.read_text() == "rules: 5\n"


def test_a_bad_name_is_refused(path: Path) -> None:
    with pytest.raises(TproxyError):
        edit.set_pypi(path, "../x", "build", allow=True)
