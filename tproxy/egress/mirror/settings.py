"""The mirror's settings: where upstreams are, what they are called here, and which credentials they get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tproxy.egress.policy.rules import IPNetwork, Policy
from tproxy.errors import ConfigError

HUB = "docker.io"
# Names under which clients know the Docker Hub. Images have the first one in their names.
HUB_HOSTS = (HUB, "registry-1.docker.io", "index.docker.io")


@dataclass(frozen=True)
class Credential:
    """A user's name and password for addresses that begin with ``realm``, and for no others."""

    realm: str
    username: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class Settings:
    """What the mirror needs to know. Addresses of upstreams end in "/"."""

    root: Path
    sealed: bool = False
    quota: int | None = None  # bytes
    pypi: str = "https://pypi.org/simple/"
    pypi_files: tuple[str, ...] = ("https://files.pythonhosted.org/",)
    galaxy: str = "https://galaxy.ansible.com/"
    deb: tuple[str, ...] = ("http://deb.debian.org/debian/", "http://deb.debian.org/debian-security/")
    # Registries as images' names write them, each with its address.
    oci: Mapping[str, str] = field(default_factory=lambda: {HUB: "https://registry-1.docker.io/"})
    inner: tuple[IPNetwork, ...] = ()  # inner networks in which upstreams may be
    credentials: tuple[Credential, ...] = ()
    ca: str = ""  # a file of authorities that may sign upstreams' certificates, besides the system's
    files: Mapping[str, str] = field(default_factory=dict)  # plain files: URL and SHA-256

    @property
    def repositories(self) -> dict[str, str]:
        """Debian repositories by their names here, which are host and path: deb.debian.org/debian."""
        return {repository_name(url): url for url in self.deb}

    def kind_of_host(self, host: str) -> str:
        """Return the kind of what an official site offers: "pypi", "deb", "oci", "galaxy" or ""."""
        if host in {_host(self.pypi), *map(_host, self.pypi_files)}:
            return "pypi"
        if host == _host(self.galaxy):
            return "galaxy"
        if self.registry_of_host(host):
            return "oci"
        return "deb" if any(_host(url) == host for url in self.deb) else ""

    def registry_of_host(self, host: str) -> str:
        """Return the registry, as images' names write it, that has this host name; "" for none."""
        if host in HUB_HOSTS and HUB in self.oci:
            return HUB
        return next((name for name, url in self.oci.items() if host in (name, _host(url))), "")

    def credential(self, url: str) -> Credential | None:
        """Return the credential for an address. "https://host" is not the start of "https://host.evil"."""
        for each in self.credentials:
            rest = url.removeprefix(each.realm)
            if url.startswith(each.realm) and (each.realm.endswith("/") or rest[:1] in ("", "/", "?")):
                return each
        return None


def repository_name(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.netloc}{parts.path}".strip("/")


def _host(url: str) -> str:
    return urlsplit(url).netloc


def settings_of(policy: Policy, root: Path, quota: int | None = None) -> Settings:
    """Return the mirror's settings from a policy. Raises ConfigError when a password cannot be read."""
    upstreams = policy.upstreams
    return Settings(
        root=root,
        sealed=policy.mode == "sealed",
        quota=quota,
        pypi=upstreams.pypi_index,
        pypi_files=upstreams.pypi_files,
        galaxy=upstreams.galaxy,
        deb=upstreams.deb,
        oci=upstreams.oci,
        inner=policy.inner,
        credentials=tuple(
            Credential(each.realm, each.user, _password(each.password_file)) for each in policy.credentials
        ),
        ca=policy.upstream_ca,
        files={file.url: file.sha256 for rule in policy.rules if not rule.deny for file in rule.files},
    )


def _password(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise ConfigError(f"cannot read the password in {path}: {error.strerror}") from error
