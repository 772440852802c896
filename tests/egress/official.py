"""Official sites of all kinds on the addresses of a node: made in the test, by the kinds' own tools."""

from __future__ import annotations

import json
import subprocess
from email.message import Message
from pathlib import Path

from tests.egress.debian import Repository
from tests.egress.galaxy import GalaxySite
from tests.egress.node import REGISTRY, Node
from tests.egress.registry import CONFIG, PROGRAM, Layout
from tests.egress.upstream import Site
from tproxy.lab.egress import made

DEBIAN, GALAXY = "deb.debian.org", "galaxy.ansible.com"


def publish(node: Node, name: str, *versions: str) -> None:
    """Put a project with these versions on the node's pypi.org."""
    made.project(node.sites, name, *versions)


def offer(node: Node, host: str, site: Site) -> None:
    """Put all pages of a site at the node's host of this name."""
    for path, page in site.pages.items():
        node.site(host, path, page.body, page.headers)


def all_kinds(node: Node) -> None:
    """Offer a wheel, a Debian package, an image, a collection and a role."""
    publish(node, "good", "1.0", "2.0")
    publish(node, "other", "1.0")
    folder = node.root / "made"
    debian = Repository(Site(url=f"http://{DEBIAN}/"), folder / "debian")
    debian.add("bookworm", "base-of-tool", "1.0")
    debian.add("bookworm", "tool-of-test", "1:2.0", depends="base-of-tool")
    debian.publish("bookworm")
    debian.close()
    offer(node, DEBIAN, debian.site)
    registry(node, folder, "library/alpine:3", "library/tool-of-test:3", "evil/image:1")
    galaxy = GalaxySite(Site(url=f"https://{GALAXY}/"))
    galaxy.add(folder / "galaxy", "acme.tools", "1.0.0")
    galaxy.add_role("acme", "web", "1.0.0")
    for path in ("collections/acme/tools/versions/", "collections/acme/tools/versions/1.0.0/"):
        _answer(galaxy, f"/api/v3/{path}")
    _answer(galaxy, "/api/v1/roles/", "?owner__username=acme&name=web")
    _answer(galaxy, "/api/v1/roles/1/versions/")
    offer(node, GALAXY, galaxy.site)
    node.site("host.example", "/releases/a", "file a\n")


def registry(node: Node, folder: Path, *images: str) -> None:
    """Run Debian's docker-registry as the Docker Hub, with these images."""
    pem = str(node.root / "site.pem")
    listen = {"addr": f"{REGISTRY}:443", "tls": {"certificate": pem, "key": pem}}
    log = node.root / "registry.log"
    config = {**CONFIG, "http": listen}
    (node.root / "registry.json").write_text(json.dumps(config))
    with log.open("w") as file:
        command = (PROGRAM, "serve", str(node.root / "registry.json"))
        node.popen(*command, stdout=file, stderr=subprocess.DEVNULL)
    ping = ("curl", "-sk", f"https://{REGISTRY}/v2/")
    node.wait_for(lambda: node.run(*ping, check=False).returncode == 0, "docker-registry listens")
    for number, image in enumerate(images):
        made = Layout(folder / f"image{number}", image, 1000, ("amd64",))
        node.run(*made.push(f"docker://{REGISTRY}/{image}"))


def asked_of_registry(node: Node) -> int:
    """Return how many requests the registry had."""
    return len((node.root / "registry.log").read_text().splitlines())


def _answer(galaxy: GalaxySite, path: str, query: str = "") -> None:
    reply = galaxy.site.answer(path + query, Message())
    assert reply is not None, path
    galaxy.site.pages[path] = reply
