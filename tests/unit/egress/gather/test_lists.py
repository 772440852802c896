"""Lists in their three forms, and what is refused in them."""

from __future__ import annotations

import json

import pytest

from tproxy.egress.gather.engines import platform_tags
from tproxy.egress.gather.lists import Item, ListError, can_be_wanted, read
from tproxy.egress.model import Artifact


def test_lines_with_comments_are_read_and_each_thing_counts_once() -> None:
    text = "# for the web team\npypi django>=4  # and what it needs\n\ndeb  curl\ndeb curl\n"
    assert read(text) == [Item("pypi", "django>=4"), Item("deb", "curl")]


def test_a_want_list_is_a_list() -> None:
    wants = [
        {"kind": "pypi", "name": "requests", "version": ""},
        {"kind": "pypi", "name": "flask", "version": "3.0"},
        {"kind": "deb", "name": "curl", "version": "7.88"},
        {"kind": "oci", "name": "docker.io/library/alpine", "version": "3"},
        {"kind": "galaxy", "name": "acme.tools", "version": "1.0.0"},
        {"kind": "role", "name": "acme.web", "version": ""},
        {"kind": "file", "name": "https://x.example/tool", "version": "c" * 64},
    ]
    assert [str(item) for item in read(json.dumps(wants))] == [
        "pypi requests",
        "pypi flask==3.0",
        "deb curl=7.88",
        "oci docker.io/library/alpine:3",
        "galaxy acme.tools:1.0.0",
        "role acme.web",
        "file https://x.example/tool " + "c" * 64,
    ]


def test_an_sbom_is_a_list() -> None:
    purls = [
        "pkg:pypi/flask@3.0?file_name=flask-3.0-py3-none-any.whl",
        "pkg:deb/debian/curl@7.88?arch=amd64",
        "pkg:oci/alpine@sha256%3A" + "a" * 64 + "?repository_url=docker.io/library/alpine&tag=3",
        "pkg:generic/acme.tools@1.0.0?ansible=galaxy",
        "pkg:generic/acme.web@1.0.0?ansible=role",
        "pkg:generic/of-no-hash?download_url=https://x.example/of-no-hash",
        "pkg:generic/tool?download_url=https://x.example/tool&checksum=sha256:" + "b" * 64,
        "pkg:npm/left-pad@1.0",
    ]
    sbom = {"bomFormat": "CycloneDX", "components": [{"purl": purl} for purl in purls] + [{"name": "x"}]}
    assert [str(item) for item in read(json.dumps(sbom))] == [
        "pypi flask==3.0",
        "deb curl=7.88",
        "oci docker.io/library/alpine:3",
        "galaxy acme.tools:1.0.0",
        "role acme.web:1.0.0",
        "file https://x.example/tool " + "b" * 64,
    ]


@pytest.mark.parametrize(
    "artifact",
    [
        Artifact("deb", "", "trixie", "InRelease"),
        Artifact("galaxy", "role 7"),
        Artifact("file", url="https://x.example/tool"),
        Artifact("uri", url="https://x.example/"),
    ],
)
def test_what_a_list_cannot_name_is_not_wanted(artifact: Artifact) -> None:
    assert not can_be_wanted(artifact)


@pytest.mark.parametrize(
    "line",
    [
        "npm left-pad",
        "pypi --index-url=http://evil/",
        "pypi x @ http://evil/x.whl",
        "deb -oDir=/x",
        "deb Curl",
        "oci alpine",
        "galaxy tools",
        "galaxy -s.x",
        "file http://x",
        "role x",
    ],
)
def test_what_no_client_should_be_given_is_refused_with_its_line(line: str) -> None:
    with pytest.raises(ListError, match="list:2: "):
        read(f"# comment\n{line}\n")


@pytest.mark.parametrize(
    ("platform", "some"),
    [
        ("manylinux_2_36_x86_64", {"manylinux_2_36_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"}),
        ("manylinux2014_aarch64", {"manylinux_2_17_aarch64", "manylinux_2_5_aarch64", "linux_aarch64"}),
        ("musllinux_1_2_x86_64", {"musllinux_1_2_x86_64"}),
    ],
)
def test_a_platform_can_use_wheels_for_older_ones(platform: str, some: set[str]) -> None:
    assert some <= set(platform_tags(platform))
    assert "manylinux_2_37_x86_64" not in platform_tags(platform)
