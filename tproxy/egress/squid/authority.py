"""The certificate authority by which squid opens HTTPS, and the certificates of squid and the mirror.

A client trusts the authority, so its key never leaves this node. A rotation makes a new authority, which
signs from then on. The old one signs the new one's certificate too, and squid sends that along: who trusts
either of the two can verify what squid shows, until the old one expires or is dropped.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from tproxy.egress import certificates
from tproxy.errors import TproxyError

LIFE = timedelta(days=3650)
WARN_BEFORE = timedelta(days=60)
_PEER_LIFE = timedelta(days=3650)

# The name in the mirror's certificate, which squid requires (ssldomain=).
MIRROR_NAME = "mirror.tproxy.invalid"


@dataclass(frozen=True)
class Authority:
    """The files of the authority, in one directory, which only root can enter for writing.

    ``ca.pem`` is the certificate that signs, ``ca.key`` its key; ``chain.pem`` is what squid shows, and
    ``trusted.pem`` what clients should trust: the new and, during a rotation, the old certificate.
    """

    directory: Path

    @property
    def certificate(self) -> Path:
        return self.directory / "ca.pem"

    @property
    def key(self) -> Path:
        return self.directory / "ca.key"

    @property
    def chain(self) -> Path:
        return self.directory / "chain.pem"

    @property
    def trusted(self) -> Path:
        return self.directory / "trusted.pem"

    def ensure(self) -> bool:
        """Create the authority unless it is there. Return whether it was created now."""
        if self.certificate.exists() and self.key.exists() and self.chain.exists() and self.trusted.exists():
            return False
        if self.key.exists() or self.certificate.exists():
            raise TproxyError(f"{self.directory} holds a part of an authority: restore it or remove it")
        certificates.directory_for(self.directory)
        key, certificate = certificates.new_authority(certificates.now() + LIFE)
        certificates.write(self.trusted, certificates.pem(certificate))
        certificates.write(self.chain, certificates.pem(certificate))
        certificates.write(self.certificate, certificates.pem(certificate))
        certificates.write_key(self.key, key)
        return True

    def rotate(self) -> None:
        """Make a new authority that signs from now on. The old one stays trusted until it expires.

        The squid that runs signs with the old one until it is started again.
        """
        old, old_key = self.load(), self._load_key()
        key, certificate = certificates.new_authority(certificates.now() + LIFE)
        cross = certificates.authority_certificate(
            key.public_key(), certificate.subject, old.subject, old_key, old.not_valid_after_utc
        )
        certificates.write(self.trusted, certificates.pem(certificate) + certificates.pem(old))
        certificates.write(self.chain, certificates.pem(cross) + certificates.pem(old))
        # The key is last: until then the old pair is complete in the files "old".
        certificates.write(self.directory / "old.pem", certificates.pem(old))
        certificates.write_key(self.directory / "old.key", old_key)
        certificates.write(self.certificate, certificates.pem(certificate))
        certificates.write_key(self.key, key)

    def drop_old(self) -> None:
        """End a rotation: only the new authority is trusted from now on."""
        certificate = certificates.pem(self.load())
        certificates.write(self.trusted, certificate)
        certificates.write(self.chain, certificate)
        for name in ("old.pem", "old.key"):
            with suppress(FileNotFoundError):
                (self.directory / name).unlink()

    def load(self) -> x509.Certificate:
        """Return the certificate that signs. Raises TproxyError."""
        if not self.certificate.exists():
            raise TproxyError(f"there is no authority in {self.directory}: tproxy egress up makes one")
        return certificates.load(self.certificate)

    @property
    def rotating(self) -> bool:
        return (self.directory / "old.pem").exists()

    def warning(self, now: datetime | None = None) -> str:
        """Return a line when a trusted certificate expires within 60 days, or has expired; otherwise ""."""
        now = now or certificates.now()
        ends = self.load().not_valid_after_utc
        if ends <= now:
            return f"the authority has expired on {ends:%Y-%m-%d}: run tproxy egress ca --rotate"
        if ends - now <= WARN_BEFORE:
            return f"the authority expires on {ends:%Y-%m-%d}: run tproxy egress ca --rotate"
        return ""

    def _load_key(self) -> ec.EllipticCurvePrivateKey:
        try:
            found = serialization.load_pem_private_key(self.key.read_bytes(), None)
        except (OSError, ValueError) as error:
            raise TproxyError(f"{self.key}: {error}") from None
        assert isinstance(found, ec.EllipticCurvePrivateKey)
        return found


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 fingerprint as ``openssl x509 -fingerprint`` writes it."""
    return ":".join(f"{byte:02X}" for byte in certificate.fingerprint(hashes.SHA256()))


def peer_certificates(directory: Path) -> None:
    """Make the certificates of squid and mirror for their connection, unless they are there.

    ``ca.pem`` has signed both, and its key is thrown away; ``squid.pem``/``.key`` and ``mirror.pem``/``.key``
    are for client and server.
    """
    names = ("ca.pem", "squid.pem", "squid.key", "mirror.pem", "mirror.key")
    if all((directory / name).exists() for name in names):
        return
    certificates.directory_for(directory)
    key, root = certificates.new_authority(certificates.now() + _PEER_LIFE, "tproxy egress peers")
    for name, domain, usage in (
        ("squid", "squid.tproxy.invalid", ExtendedKeyUsageOID.CLIENT_AUTH),
        ("mirror", MIRROR_NAME, ExtendedKeyUsageOID.SERVER_AUTH),
    ):
        own = ec.generate_private_key(ec.SECP256R1())
        builder = certificates.unsigned(
            own.public_key(), certificates.named(domain), root.subject, certificates.now() + _PEER_LIFE
        )
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(domain)]), critical=False)
        certificates.write_key(directory / f"{name}.key", own)
        certificates.write(directory / f"{name}.pem", certificates.pem(builder.sign(key, hashes.SHA256())))
    certificates.write(directory / "ca.pem", certificates.pem(root))
