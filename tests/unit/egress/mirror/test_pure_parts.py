"""The pure parts of the mirror: paths, index pages, Debian's indexes, credentials."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy.egress.mirror import deb_indexes, index_pages
from tproxy.egress.mirror.index_pages import File
from tproxy.egress.mirror.oci import parts_of
from tproxy.egress.mirror.router import clean_path, route
from tproxy.egress.mirror.settings import Credential, Settings
from tproxy.errors import ProtocolError

SETTINGS = Settings(Path("/none"), files={"https://host.example/a.tgz": "a" * 64})


@pytest.mark.parametrize(
    ("host", "path", "expected"),
    [
        ("pypi.org", "/simple/demo/", ("pypi", "", "/simple/demo/")),
        ("files.pythonhosted.org", "/packages/x.whl", ("pypi", "", "/packages/x.whl")),
        ("registry-1.docker.io", "/v2/x", ("oci", "docker.io", "/v2/x")),
        (
            "deb.debian.org",
            "/debian/dists/x/InRelease",
            ("deb", "deb.debian.org/debian", "/dists/x/InRelease"),
        ),
        (
            "deb.debian.org",
            "/other/dists/x/InRelease",
            ("deb", "", "/deb.debian.org/other/dists/x/InRelease"),
        ),
        ("galaxy.ansible.com", "/api/", ("galaxy", "", "/api/")),
        ("10.0.0.1:3192", "/pypi/simple/", ("pypi", "", "/simple/")),
        ("10.0.0.1:3192", "/v2/", ("oci", "", "/v2/")),
        ("10.0.0.1:3192", "/deb/deb.debian.org/debian/pool/x", ("deb", "deb.debian.org/debian", "/pool/x")),
        ("10.0.0.1:3192", "/files/https/x.example/y", ("file", "", "https://x.example/y")),
        ("host.example", "/a.tgz", ("file", "", "https://host.example/a.tgz")),
        ("host.example", "/b.tgz", ("", "", "/b.tgz")),
    ],
)
def test_host_and_path_lead_to_a_part(host: str, path: str, expected: tuple[str, str, str]) -> None:
    assert route(SETTINGS, host, path) == expected


@given(st.text())
def test_a_clean_path_has_no_dots_and_no_control_characters(text: str) -> None:
    try:
        path = clean_path("/" + text)
    except (ProtocolError, UnicodeDecodeError):
        return
    assert not {"..", "."} & set(path.split("/"))
    assert path.isprintable()
    assert "\\" not in path


FILES = [
    File(
        "demo-1.0-py3-none-any.whl",
        "https://x/demo-1.0-py3-none-any.whl",
        "1.0",
        "a" * 64,
        ">=3.8",
        "b" * 64,
        True,
    )
]


def test_pages_in_json_and_html_say_the_same() -> None:
    for write in (index_pages.as_json, index_pages.as_html):
        (found,) = index_pages.parse(write("demo", FILES), "https://mirror/simple/demo/", "demo")
        assert (found.filename, found.version, found.sha256) == (FILES[0].filename, "1.0", "a" * 64)
        assert (found.requires_python, found.metadata) == (">=3.8", "b" * 64)
        assert found.url == "https://mirror/files/demo/demo-1.0-py3-none-any.whl"


def test_files_of_another_project_and_without_a_version_are_left_out() -> None:
    names = ["evil-1.0-py3-none-any.whl", "demo.exe", "demo-x.whl", "Demo-2.0.tar.gz"]
    page = json.dumps({"files": [{"filename": name, "url": name} for name in names]}).encode()
    assert [file.filename for file in index_pages.parse(page, "https://x/", "demo")] == ["Demo-2.0.tar.gz"]


def test_names_of_a_page_are_escaped() -> None:
    page = index_pages.as_html('x"><script>', [File('a"><b.whl', "https://x/", "1", requires_python='"><i>')])
    assert b"<script>" not in page
    assert b"<i>" not in page


def test_release_and_packages_are_read() -> None:
    release = "Suite: bookworm\nMD5Sum:\n abc 1 x\nSHA256:\n " + "a" * 64 + "  12 main/Packages\nDate: x\n"
    assert deb_indexes.sums(release) == {"main/Packages": ("a" * 64, 12)}
    text = (
        "Package: curl\nVersion: 1:2\nArchitecture: amd64\nFilename: ./pool/c.deb\nSize: 3\nSHA256: x\n"
        "Description: a\n Filename: evil\n\nPackage: none\n"
    )
    (found,) = deb_indexes.packages(text)
    assert (found.package, found.version, found.path) == ("curl", "1:2", "pool/c.deb")


@pytest.mark.parametrize(
    "pack", [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)]
)
def test_indexes_are_unpacked(pack: tuple[str, object]) -> None:
    ending, compress = pack
    assert callable(compress)
    assert deb_indexes.unpacked(f"Packages{ending}", compress(b"text")) == b"text"
    if ending:
        with pytest.raises(ValueError, match="cannot be unpacked"):
            deb_indexes.unpacked(f"Packages{ending}", b"no")


def test_a_manifest_names_its_parts() -> None:
    digest = "sha256:" + "a" * 64
    found = {"config": {"digest": digest}, "layers": [{"digest": "md5:x"}, 3], "manifests": None}
    assert parts_of(json.dumps(found).encode()) == ["a" * 64]
    with pytest.raises(ValueError, match="JSON object"):
        parts_of(b"[]")


def test_a_credential_goes_to_no_address_that_only_begins_alike() -> None:
    found = Settings(Path("/none"), credentials=(Credential("https://host", "u", "p"),))
    assert found.credential("https://host/v2/")
    assert found.credential("https://host")
    assert found.credential("https://host.evil.example/") is None
    assert found.credential("http://host/") is None
    assert "p" not in repr(found.credentials[0]).replace("Credential(realm='https://host', username='u'", "")
