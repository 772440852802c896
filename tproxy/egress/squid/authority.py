"""The certificate authority by which squid opens HTTPS, and the certificates of squid and the mirror.

A client trusts the authority, so its key never leaves this node. A rotation makes a new authority, which
signs from then on. The old one signs the new one's certificate too, and squid sends that along: who trusts
either of the two can verify what squid shows, until the old one expires or is dropped.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tproxy.errors import TproxyError

LIFE = timedelta(days=3650)
WARN_BEFORE = timedelta(days=60)
_PEER_LIFE = timedelta(days=3650)
# Clocks of guests may be behind.
_BACKDATED = timedelta(days=1)

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
        _directory(self.directory)
        key, certificate = _new_authority(_now() + LIFE)
        _write(self.trusted, _pem(certificate))
        _write(self.chain, _pem(certificate))
        _write(self.certificate, _pem(certificate))
        _write_key(self.key, key)
        return True

    def rotate(self) -> None:
        """Make a new authority that signs from now on. The old one stays trusted until it expires.

        The squid that runs signs with the old one until it is started again.
        """
        old_key, old = self._load_key(), self.load()
        key, certificate = _new_authority(_now() + LIFE)
        cross = _authority_certificate(
            key.public_key(), certificate.subject, old.subject, old_key, old.not_valid_after_utc
        )
        _write(self.trusted, _pem(certificate) + _pem(old))
        _write(self.chain, _pem(cross) + _pem(old))
        # The key is last: until then the old pair is complete in the files "old".
        _write(self.directory / "old.pem", _pem(old))
        _write_key(self.directory / "old.key", old_key)
        _write(self.certificate, _pem(certificate))
        _write_key(self.key, key)

    def drop_old(self) -> None:
        """End a rotation: only the new authority is trusted from now on."""
        certificate = _pem(self.load())
        _write(self.trusted, certificate)
        _write(self.chain, certificate)
        for name in ("old.pem", "old.key"):
            with suppress(FileNotFoundError):
                (self.directory / name).unlink()

    def load(self) -> x509.Certificate:
        """Return the certificate that signs. Raises TproxyError."""
        return _load(self.certificate)

    @property
    def rotating(self) -> bool:
        return (self.directory / "old.pem").exists()

    def warning(self, now: datetime | None = None) -> str:
        """Return a line when a trusted certificate expires within 60 days, or has expired; otherwise ""."""
        now = now or _now()
        ends = self.load().not_valid_after_utc
        if ends <= now:
            return f"the authority has expired on {ends:%Y-%m-%d}: run tproxy egress ca rotate"
        if ends - now <= WARN_BEFORE:
            return f"the authority expires on {ends:%Y-%m-%d}: run tproxy egress ca rotate"
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
    _directory(directory)
    key, root = _new_authority(_now() + _PEER_LIFE, "tproxy egress peers")
    for name, domain, usage in (
        ("squid", "squid.tproxy.invalid", ExtendedKeyUsageOID.CLIENT_AUTH),
        ("mirror", MIRROR_NAME, ExtendedKeyUsageOID.SERVER_AUTH),
    ):
        own = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(own.public_key(), _name(domain), root.subject, _now() + _PEER_LIFE)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(domain)]), critical=False)
        _write_key(directory / f"{name}.key", own)
        _write(directory / f"{name}.pem", _pem(builder.sign(key, hashes.SHA256())))
    _write(directory / "ca.pem", _pem(root))


def _new_authority(
    ends: datetime, title: str = "tproxy egress"
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(f"{title} {os.uname().nodename[:32]} {_now():%Y-%m-%d} {os.urandom(3).hex()}")
    return key, _authority_certificate(key.public_key(), subject, subject, key, ends)


def _authority_certificate(
    public: ec.EllipticCurvePublicKey,
    subject: x509.Name,
    issuer: x509.Name,
    signer: ec.EllipticCurvePrivateKey,
    ends: datetime,
) -> x509.Certificate:
    builder = _builder(public, subject, issuer, ends)
    # Length 0 forbids authorities below this one, but a rotation needs one: the new authority.
    length = 1 if subject == issuer else 0
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=length), critical=True)
    usage = {"key_cert_sign": True, "crl_sign": True, "digital_signature": False}
    rest = "content_commitment key_encipherment data_encipherment key_agreement encipher_only decipher_only"
    usage |= dict.fromkeys(rest.split(), False)
    builder = builder.add_extension(x509.KeyUsage(**usage), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    return builder.add_extension(identifier, critical=False).sign(signer, hashes.SHA256())


def _builder(
    public: ec.EllipticCurvePublicKey, subject: x509.Name, issuer: x509.Name, ends: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - _BACKDATED)
        .not_valid_after(ends)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _load(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TproxyError(f"{path}: {error}") from None


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _directory(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True, mode=0o755)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(path, text, 0o600)


def _write(path: Path, text: bytes, mode: int = 0o644) -> None:
    """Write a file at once, so that a reader never sees a half."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(fd, "wb") as file:
        os.fchmod(fd, mode)
        file.write(text)
        file.flush()
        os.fsync(fd)
    os.replace(new, path)
