"""The types of a policy, as read from egress.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Literal

from packaging.specifiers import SpecifierSet

from tproxy.egress.model import Caller

ANY = "*"  # as a network: all of them

IPNetwork = IPv4Network | IPv6Network


@dataclass(frozen=True)
class Project:
    """A Python project with the versions that are meant. An empty specifier means all versions."""

    name: str  # normalized, PEP 503; may hold "*"
    versions: SpecifierSet

    def __str__(self) -> str:
        return f"{self.name}{self.versions}"


@dataclass(frozen=True)
class Image:
    """A repository of container images. ``digest`` pins one image: "sha256:…", or "" for all."""

    repository: str  # with its registry: docker.io/library/alpine; may hold "*"
    digest: str = ""


@dataclass(frozen=True)
class File:
    """One file by URL and content."""

    url: str
    sha256: str


@dataclass(frozen=True)
class Suites:
    """Debian suites, and the packages of them that are meant; no packages means all."""

    names: frozenset[str]
    packages: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Limits:
    """What one guest may use at a time. 0 means no limit."""

    connections: int = 0  # that carry something: an idle one is not counted by squid
    bytes_per_second: int = 0


@dataclass(frozen=True)
class Rule:
    """One rule. It applies to callers of ``networks`` and, where it names some, of ``hypervisors``."""

    line: int
    deny: bool = False
    networks: frozenset[str] = frozenset()
    hypervisors: frozenset[str] = frozenset()
    pypi: tuple[Project, ...] = ()
    deb: Suites | None = None
    oci: tuple[Image, ...] = ()
    galaxy: frozenset[str] = frozenset()
    files: tuple[File, ...] = ()
    get: tuple[str, ...] = ()
    limits: Limits | None = None

    @property
    def fetches(self) -> bool:
        """Return whether the rule names anything to fetch. One that does not has limits only."""
        return bool(self.pypi or self.deb or self.oci or self.galaxy or self.files or self.get)

    def is_for(self, caller: Caller) -> bool:
        """Return whether the rule is about this caller."""
        if self.hypervisors and caller.hypervisor not in self.hypervisors:
            return False
        if not (caller.network or caller.network_id):
            return False  # nobody knows who that is, so no rule is for it, not even one for all networks
        return ANY in self.networks or not self.networks.isdisjoint(
            filter(None, (caller.network, caller.network_id))
        )


@dataclass(frozen=True)
class Learn:
    """A network that may fetch what no rule denies, up to and including a day; rules are proposed from it."""

    network: str
    until: date

    def is_for(self, caller: Caller, today: date) -> bool:
        return today <= self.until and self.network in (caller.network, caller.network_id)


@dataclass(frozen=True)
class Upstreams:
    """Where the official sites are, each with a "/" at its end. Requests to them are for the mirror."""

    pypi_index: str = "https://pypi.org/simple/"
    pypi_files: tuple[str, ...] = ("https://files.pythonhosted.org/",)
    deb: tuple[str, ...] = (
        "http://deb.debian.org/debian/",
        "http://deb.debian.org/debian-security/",
        "http://security.debian.org/debian-security/",
    )
    # By the name that clients use. The hosts behind the name of the Docker Hub have other names.
    oci: Mapping[str, str] = field(
        default_factory=lambda: {"docker.io": "https://registry-1.docker.io/", "quay.io": "https://quay.io/"}
    )
    galaxy: str = "https://galaxy.ansible.com/"


@dataclass(frozen=True)
class Credential:
    """A user's name and the file with the password, for URLs that begin with ``realm`` and for no others."""

    realm: str
    user: str
    password_file: str


@dataclass(frozen=True)
class Client:
    """Hosts that are no guests: who comes from these addresses belongs to this network."""

    addresses: IPNetwork
    network: str


@dataclass(frozen=True)
class Listen:
    """Addresses and ports of the egress. ``proxy`` and ``transparent`` take PROXY headers."""

    address: str = "127.0.0.1"
    proxy: tuple[int, ...] = (3128, 8443)
    transparent: int = 443
    clients: int = 3129  # without a header; used only when the policy has clients
    clients_address: str = "0.0.0.0"
    setup: int = 8480
    resolver: int = 5353
    mirror: int = 3190  # of the mirror, for squid; on 127.0.0.1
    guests: int = 3192  # of the mirror, for guests that ask it themselves, with PROXY headers; on 127.0.0.1
    hosts: int = 0  # for hypervisors elsewhere, with TLS; 0 for none
    hosts_address: str = "0.0.0.0"


@dataclass(frozen=True)
class Policy:
    """The whole file. The default denies everything."""

    path: str = ""
    mode: Literal["dmz", "sealed"] = "dmz"
    rules: tuple[Rule, ...] = ()
    tunnel: tuple[tuple[str, frozenset[str]], ...] = ()  # host, and the networks that may reach it
    clients: tuple[Client, ...] = ()
    learn: Learn | None = None
    limits: Limits = Limits()
    upstreams: Upstreams = field(default_factory=Upstreams)
    credentials: tuple[Credential, ...] = ()
    upstream_ca: str = ""  # a file with authorities that upstreams' certificates may be signed by as well
    inner: tuple[IPNetwork, ...] = ()  # may be reached although the addresses are private
    listen: Listen = Listen()

    def network_of(self, address: str) -> str:
        """Return the network of a host that is no guest; "" for one that the policy does not know."""
        found = ip_address(address)
        return next((each.network for each in self.clients if found in each.addresses), "")
