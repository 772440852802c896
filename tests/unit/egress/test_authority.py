"""The authority: who may read its key, and what is said before it expires."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from tproxy.egress.squid.authority import Authority, peer_certificates
from tproxy.errors import TproxyError


def test_it_is_created_once_and_its_key_is_secret(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    assert authority.ensure()
    before = authority.certificate.read_bytes()
    assert not authority.ensure()
    assert authority.certificate.read_bytes() == before
    assert authority.key.stat().st_mode & 0o777 == 0o600


def test_a_lost_key_is_not_replaced_in_silence(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    authority.ensure()
    authority.key.unlink()
    with pytest.raises(TproxyError):
        authority.ensure()


@pytest.mark.parametrize(
    ("days", "expected"), [(61, ""), (60, "expires on"), (1, "expires on"), (-1, "has expired")]
)
def test_it_warns_60_days_before_it_expires(tmp_path: Path, days: int, expected: str) -> None:
    authority = Authority(tmp_path / "ca")
    authority.ensure()
    found = authority.warning(authority.load().not_valid_after_utc - timedelta(days=days))
    assert (expected in found) if expected else found == ""


def test_a_rotation_trusts_both_and_its_end_only_the_new_one(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    authority.ensure()
    old = authority.load()
    authority.rotate()
    trusted = x509.load_pem_x509_certificates(authority.trusted.read_bytes())
    assert trusted == [authority.load(), old]
    cross = x509.load_pem_x509_certificates(authority.chain.read_bytes())[0]
    assert cross.issuer == old.subject
    cross.verify_directly_issued_by(old)
    authority.drop_old()
    assert x509.load_pem_x509_certificates(authority.trusted.read_bytes()) == [authority.load()]


def test_squid_and_mirror_have_certificates_of_one_authority(tmp_path: Path) -> None:
    peer_certificates(tmp_path)
    before = (tmp_path / "squid.pem").read_bytes()
    peer_certificates(tmp_path)
    assert (tmp_path / "squid.pem").read_bytes() == before
    root = x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes())
    for name in ("squid", "mirror"):
        x509.load_pem_x509_certificate((tmp_path / f"{name}.pem").read_bytes()).verify_directly_issued_by(
            root
        )
        assert (tmp_path / f"{name}.key").stat().st_mode & 0o777 == 0o600
