"""Imports a bundle: verifies, fills the store, and activates by one rename.

Theory of operation. Until the rename, everything that an import does adds blobs that nothing names, or a
directory that is not active. So after a power cut at any moment the old state is there, or the new one; and
an import that was interrupted goes on with the first blob that is not in the store.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tproxy.egress.bundle import parts, reading
from tproxy.egress.bundle.manifest import KEY, MANIFEST, SIGNATURE, BundleError, Manifest
from tproxy.egress.mirror import suites
from tproxy.egress.mirror.site_key import SiteKey
from tproxy.egress.store.filling import Filling
from tproxy.egress.store.records import Damaged
from tproxy.egress.store.store import SITE, Store


def import_bundle(
    store: Store,
    path: Path,
    fingerprint: str = "",
    downgrade: bool = False,
    scan: Sequence[str] = (),
    seen: Callable[[int], None] = lambda count: None,
) -> Manifest:
    """Import and activate a bundle, and return its manifest. Raises BundleError, and then nothing changed."""
    with _alone(store):
        if scan:
            _scan(scan, parts.of(path))
        with reading.opened(path, reading.trusted_key(store.root), fingerprint) as bundle:
            manifest = bundle.manifest
            _check_serial(store, manifest, downgrade)
            _check_base(store, manifest)
            if manifest.serial != store.serial():
                # Until the end of this import nobody can go back to another bundle of this serial.
                (store.bundles / str(manifest.serial) / SITE).unlink(missing_ok=True)
            # Written before the blobs, so that nothing evicts them: a bundle's blobs are protected.
            store.add_bundle(manifest.serial, {MANIFEST: bundle.files[MANIFEST]})
            _fill(store, bundle, seen)
            lost = [sha256 for sha256 in manifest.needed if store.blobs.find(sha256) is None]
            if lost:
                raise BundleError(f"{len(lost)} blobs are missing after the import, {lost[0]} first")
            made = suites.build(store, manifest.records, SiteKey(store.root))
            site = json.dumps({"records": [record.as_json() for record in made]}).encode()
            store.add_bundle(
                manifest.serial,
                {SITE: site, SIGNATURE: bundle.files[SIGNATURE], KEY: bundle.files[KEY]},
            )
            if fingerprint:
                reading.trust(store.root, bundle.key)
        store.activate(manifest.serial)
        return manifest


def _check_serial(store: Store, manifest: Manifest, downgrade: bool) -> None:
    active = store.serial()
    if active is not None and manifest.serial < active and not downgrade:
        raise BundleError(
            f"bundle {manifest.serial} is older than the active one, {active}: --downgrade allows that"
        )
    if active == manifest.serial and store.manifest(active)["created"] != manifest.created:
        raise BundleError(f"another bundle with serial {active} is active")


def _check_base(store: Store, manifest: Manifest) -> None:
    absent = [each for each in manifest.needed if each not in manifest.blobs and not store.blobs.find(each)]
    if absent:
        raise BundleError(
            f"the bundle is a delta against {manifest.base}, and {len(absent)} blobs of that are not here"
        )


def _fill(store: Store, bundle: reading.Opened, seen: Callable[[int], None]) -> None:
    """Have all blobs of a bundle in the store, and durable."""
    filling = Filling(store.blobs)
    try:
        for sha256, content in bundle.blobs():
            size = bundle.manifest.blobs[sha256]
            if store.blobs.find(sha256) is None:
                try:
                    filling.add(content, sha256, size)
                except Damaged as error:
                    raise BundleError(f"blob {sha256} is damaged: {error}") from error
            seen(size)
        filling.close()
    finally:
        filling.abandon()


def _scan(command: Sequence[str], paths: Sequence[Path]) -> None:
    """Let a scanner look at the files before anything is read from them."""
    try:
        done = subprocess.run([*command, *map(str, paths)], check=False)
    except OSError as error:
        raise BundleError(f"the scanner {command[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        raise BundleError(f"the scanner refused the bundle: {command[0]} ended with {done.returncode}")


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    """Keep two imports from running at once."""
    descriptor = os.open(store.root / "import.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BundleError("another import is running") from None
    else:
        yield
    finally:
        os.close(descriptor)


def rollback(store: Store, serial: int | None = None) -> int:
    """Activate an earlier bundle that is kept here, the one before the active one by default. Return it."""
    active = store.serial()
    complete = [each for each in store.serials() if (store.bundles / str(each) / SITE).exists()]
    if serial is None:
        earlier = [each for each in complete if active is not None and each < active]
        if not earlier:
            raise BundleError("there is no earlier bundle")
        serial = earlier[-1]
    if serial not in complete:
        known = ", ".join(map(str, complete))
        raise BundleError(f"bundle {serial} is not here; here are {known or 'none'}")
    lost = [each.sha256 for each in store.layer(serial).all() if store.blobs.find(each.sha256) is None]
    if lost:
        raise BundleError(f"{len(lost)} blobs of bundle {serial} are missing or damaged: import it again")
    store.activate(serial)
    return serial
