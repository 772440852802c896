"""Makes X.509 certificates and keeps them and their keys in files, for the authorities of a node."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tproxy.errors import TproxyError

# Clocks of guests may be behind.
_BACKDATED = timedelta(days=1)


def new_authority(
    ends: datetime, title: str = "tproxy egress"
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """Return the key and the certificate of a new authority, which signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = named(f"{title} {os.uname().nodename[:32]} {now():%Y-%m-%d} {os.urandom(3).hex()}")
    return key, authority_certificate(key.public_key(), subject, subject, key, ends)


def authority_certificate(
    public: ec.EllipticCurvePublicKey,
    subject: x509.Name,
    issuer: x509.Name,
    signer: ec.EllipticCurvePrivateKey,
    ends: datetime,
) -> x509.Certificate:
    """Return the certificate of an authority, signed by itself or by another one."""
    builder = unsigned(public, subject, issuer, ends)
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


def unsigned(
    public: ec.EllipticCurvePublicKey, subject: x509.Name, issuer: x509.Name, ends: datetime
) -> x509.CertificateBuilder:
    """Return what all our certificates have in common."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() - _BACKDATED)
        .not_valid_after(ends)
    )


def named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def now() -> datetime:
    return datetime.now(timezone.utc)


def load(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise TproxyError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise TproxyError(f"{path} is no certificate: {error}") from None


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def directory_for(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True, mode=0o755)


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write(path, text, 0o600)


def write(path: Path, text: bytes, mode: int = 0o644) -> None:
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
