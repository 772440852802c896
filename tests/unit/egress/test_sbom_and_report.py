"""Bills of materials are valid, and no text of a guest becomes part of a page's structure or of a formula."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.cli.egress_audit import _cell
from tproxy.egress import sbom
from tproxy.egress.ledger.entries import Event
from tproxy.egress.model import Artifact, Caller
from tproxy.egress.purls import artifact_of, purl_of
from tproxy.egress.report import page
from tproxy.egress.store.records import Record

ARTIFACTS = (
    Artifact("pypi", "django", "4.2", "django-4.2-py3-none-any.whl"),
    Artifact("deb", "curl", "1:7.88-1", "curl_7.88-1_amd64.deb"),
    Artifact("oci", "docker.io/library/alpine", "3", "manifests", sha256="a" * 64),
    Artifact("galaxy", "community.general", "9.0.0", "community-general-9.0.0.tar.gz"),
    Artifact("file", url="https://example.org/tool.tar", sha256="b" * 64),
)


def entry(artifact: Artifact, verdict: str = "allowed") -> dict[str, object]:
    event = Event.of(Caller(network="vnet1", address="10.0.0.1"), artifact, verdict, sha256="c" * 64)
    return {"time": "2026-01-01T00:00:00Z", **event.as_json()}


def test_a_bill_of_what_was_fetched_is_valid_cyclonedx() -> None:
    text = sbom.as_json(sbom.of_entries([entry(each) for each in ARTIFACTS], "network vnet1"))
    sbom.check(text)
    found = json.loads(text)
    assert found["specVersion"] == "1.6"
    assert len(found["components"]) == len(ARTIFACTS)
    assert all(component["purl"].startswith("pkg:") for component in found["components"])
    assert "Fetched does not mean installed" in text


def test_a_bill_of_nothing_is_valid() -> None:
    sbom.check(sbom.as_json(sbom.of_entries([], "network vnet1")))


def test_a_bill_of_a_bundle_names_each_package_once() -> None:
    records = [
        Record("pypi", "django", "django-4.2-py3-none-any.whl", "a" * 64, 1, "4.2"),
        Record("pypi", "django", "django-4.2-py3-none-any.whl.metadata", "b" * 64, 1, "4.2"),
        Record("oci", "docker.io/library/alpine", "3", "c" * 64, 1, "3"),
        Record("oci", "docker.io/library/alpine", "sha256:" + "c" * 64, "c" * 64, 1),
        Record("dists", "deb.debian.org/debian bookworm", "InRelease", "d" * 64, 1),
    ]
    text = sbom.as_json(sbom.of_records(records, "bundle 1"))
    sbom.check(text)
    assert sorted(each["name"] for each in json.loads(text)["components"]) == ["alpine", "django"]


@pytest.mark.parametrize("artifact", ARTIFACTS, ids=lambda each: each.kind)
def test_a_package_url_leads_back_to_its_artifact(artifact: Artifact) -> None:
    found = artifact_of(purl_of(artifact))
    assert found is not None
    assert (found.kind, found.name, found.version) == (artifact.kind, artifact.name, artifact.version)


class Tags(HTMLParser):
    """Collects the tags of a page, with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, object]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, attrs))


def built(text: str) -> str:
    evil = entry(Artifact("uri", url=text), "denied") | {"network": text, "reason": text, "purl": text}
    served = entry(Artifact("pypi", "x", text, text)) | {"sha256": text}
    wants = [{"kind": text, "name": text, "version": text, "network": text, "count": 1}]
    return page([evil, served], [text], [("Fact", text)], wants)


@given(st.text())
def test_texts_of_guests_change_no_tag_of_the_page(text: str) -> None:
    plain = built("plain")
    assert Tags(built("p" + text)).tags == Tags(plain).tags


def test_a_script_of_a_guest_is_shown_as_text() -> None:
    found = built("<script>alert(1)</script>\x1b[2J\u202e")
    assert "<script" not in found
    assert "\x1b" not in found
    assert "\u202e" not in found
    assert "&lt;script&gt;" in found


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_cell_of_a_spreadsheet_is_no_formula(text: str) -> None:
    assert _cell(text)[0] in "'\\"
