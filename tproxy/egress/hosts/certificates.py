"""Certificates of the hypervisors that may send headers to this node, and of the node for them.

An authority of their own signs them: neither guests nor squid trust it. A host's certificate lists the
networks that the host may claim, as URIs (RFC 5280, 4.2.1.6). The node knows a certificate by its SHA-256,
and refuses those that are not in its directory, so removing the file takes a host out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote, unquote

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tproxy.egress import certificates
from tproxy.egress.store.durable import replace
from tproxy.errors import TproxyError, quoted

LIFE = timedelta(days=3650)
NODE_NAME = "node.tproxy.invalid"  # the name in the node's certificate, which hosts require

ANY = "*"  # as a network: the host may claim all

_NETWORK = "urn:tproxy:network:"
_NODE = "# tproxy egress node "  # the first line of a host's file; its address follows


@dataclass(frozen=True)
class Host:
    """A hypervisor, and the names and ids of networks that it may claim."""

    name: str
    networks: frozenset[str]
    fingerprint: str  # SHA-256 of its certificate, in hexadecimal

    def may_claim(self, network: str) -> bool:
        return ANY in self.networks or network in self.networks


class Hosts:
    """The authority of the hosts, and all certificates that count, in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority, self._key = directory / "ca.pem", directory / "ca.key"
        self.node = directory / "node.pem"  # with its key, as HAProxy reads it
        self._issued = directory / "issued"

    def ensure(self) -> None:
        """Make the authority and the node's certificate, unless they are there."""
        if self.node.exists():
            return
        self._issued.mkdir(parents=True, exist_ok=True)
        key, certificate = certificates.new_authority(certificates.now() + LIFE, "tproxy egress hosts")
        certificates.write_key(self._key, key)
        replace(self.authority, certificates.pem(certificate))
        names = x509.SubjectAlternativeName([x509.DNSName(NODE_NAME)])
        text, _ = self._sign(NODE_NAME, names, ExtendedKeyUsageOID.SERVER_AUTH)
        replace(self.node, text, 0o600)

    def add(self, name: str, networks: list[str], node: str) -> bytes:
        """Make a certificate for a host. Return the file that the host needs; its key is nowhere else.

        ``node`` is where the host finds this node, as ``host:port``. Raises TproxyError if the name is taken.
        """
        self.ensure()
        path = self._issued / f"{quote(name, safe='')}.pem"
        if path.exists():
            raise TproxyError(f"there is a host {quoted(name)}: remove it first")
        uris = [x509.UniformResourceIdentifier(_NETWORK + quote(each, safe="")) for each in networks]
        text, certificate = self._sign(
            name, x509.SubjectAlternativeName(uris), ExtendedKeyUsageOID.CLIENT_AUTH
        )
        replace(path, certificates.pem(certificate))
        return f"{_NODE}{node}\n".encode() + text + self.authority.read_bytes()

    def remove(self, name: str) -> None:
        """Take a host out. Raises TproxyError where there is none."""
        try:
            (self._issued / f"{quote(name, safe='')}.pem").unlink()
        except FileNotFoundError:
            raise TproxyError(f"there is no host {quoted(name)}") from None

    def all(self) -> Iterator[Host]:
        """Yield the hosts that count, by name. A file that cannot be read is none."""
        for path in sorted(self._issued.glob("*.pem")):
            try:
                certificate = x509.load_pem_x509_certificate(path.read_bytes())
            except (OSError, ValueError):
                continue
            yield _host(certificate)

    def find(self, fingerprint: str) -> Host | None:
        """Return the host with this certificate; None for one that does not count."""
        return next((each for each in self.all() if each.fingerprint == fingerprint.lower()), None)

    def _sign(
        self, name: str, names: x509.SubjectAlternativeName, usage: x509.ObjectIdentifier
    ) -> tuple[bytes, x509.Certificate]:
        """Return a key with its certificate as PEM, and the certificate."""
        issuer = x509.load_pem_x509_certificate(self.authority.read_bytes())
        signer = serialization.load_pem_private_key(self._key.read_bytes(), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        own = ec.generate_private_key(ec.SECP256R1())
        ends = min(certificates.now() + LIFE, issuer.not_valid_after_utc)
        builder = certificates.unsigned(own.public_key(), certificates.named(name[:64]), issuer.subject, ends)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        certificate = builder.add_extension(names, critical=False).sign(signer, hashes.SHA256())
        private = own.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return private + certificates.pem(certificate), certificate


def _host(certificate: x509.Certificate) -> Host:
    (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    networks = frozenset(unquote(each.removeprefix(_NETWORK)) for each in uris if each.startswith(_NETWORK))
    return Host(str(name.value), networks, certificate.fingerprint(hashes.SHA256()).hex())


def read_link(path: Path) -> tuple[str, bytes, bytes]:
    """Return where the node is, the host's key and certificate, and the authority, from a host's file.

    Raises TproxyError.
    """
    try:
        first, _, rest = path.read_text(encoding="ascii").partition("\n")
    except OSError as error:
        raise TproxyError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        first = rest = ""
    own, marker, last = rest.rpartition("-----BEGIN CERTIFICATE-----")
    if not first.startswith(_NODE) or "PRIVATE KEY" not in own or not marker:
        raise TproxyError(f"{path} is not what tproxy egress host add wrote")
    return first.removeprefix(_NODE), own.encode(), (marker + last).encode()
