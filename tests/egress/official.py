"""Official sites of all kinds on the addresses of a node: made in the test, by the kinds' own tools."""

from __future__ import annotations

from email.message import Message

from tests.egress.debian import Repository
from tests.egress.galaxy import GalaxySite
from tests.egress.node import Node
from tests.egress.registry import Registry
from tests.egress.upstream import Site
from tproxy.lab.egress import made

DEBIAN, HUB, GALAXY = "deb.debian.org", "registry-1.docker.io", "galaxy.ansible.com"


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
    images = Registry(Site(url=f"https://{HUB}/"))
    images.add("library/alpine", "3")
    images.add("evil/image", "1")
    offer(node, HUB, images.site)
    galaxy = GalaxySite(Site(url=f"https://{GALAXY}/"))
    galaxy.add(folder / "galaxy", "acme.tools", "1.0.0")
    galaxy.add_role("acme", "web", "1.0.0")
    for path in ("collections/acme/tools/versions/", "collections/acme/tools/versions/1.0.0/"):
        _answer(galaxy, f"/api/v3/{path}")
    _answer(galaxy, "/api/v1/roles/", "?owner__username=acme&name=web")
    _answer(galaxy, "/api/v1/roles/1/versions/")
    offer(node, GALAXY, galaxy.site)
    node.site("host.example", "/releases/a", "file a\n")


def _answer(galaxy: GalaxySite, path: str, query: str = "") -> None:
    reply = galaxy.site.answer(path + query, Message())
    assert reply is not None, path
    galaxy.site.pages[path] = reply
