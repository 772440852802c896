"""egress bundle: software on a medium, from a site with internet to one without."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from tproxy.cli.egress_mirror import settings, size, target_options, targets
from tproxy.cli.egress_root import layout_of, root_option, store_of
from tproxy.cli.examples import example
from tproxy.cli.progress import bar
from tproxy.console import EXIT_FAILURE, say
from tproxy.egress.bundle import importing, parts, reading
from tproxy.egress.bundle.appliance import missing, take
from tproxy.egress.bundle.creating import create as write_bundle
from tproxy.egress.bundle.manifest import differences, label
from tproxy.egress.gather.gathering import gather
from tproxy.egress.gather.lists import read
from tproxy.egress.signing import BUNDLE, KeyPair
from tproxy.errors import TproxyError, to_ascii

file_argument = click.argument("file", type=click.Path(path_type=Path))


@click.group()
def bundle() -> None:
    """Carry software to a site that may have no internet."""


@bundle.command(epilog=example("tproxy egress bundle create list.txt --output week12.tar --split"))
@click.argument("list_file", metavar="LIST", type=click.Path(path_type=Path, exists=True, allow_dash=True))
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The bundle's file.")
@click.option("--base", type=int, help="Make a delta against the bundle with this serial.")
@click.option("--split", is_flag=True, help="Write parts that fit on FAT32.")
@click.option("--part-size", help="The size of parts, as 700M; implies --split.")
@click.option(
    "--appliance",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Carry tproxy itself: wheels, Debian packages, an OCI archive, or a directory of them.",
)
@target_options
@root_option
def create(
    list_file: Path,
    output: Path,
    base: int | None,
    split: bool,
    part_size: str | None,
    appliance: tuple[Path, ...],
    keyring: str,
    root: Path | None,
    **chosen: Any,
) -> None:
    """Make a bundle of what LIST names, with all that it depends on.

    LIST has a line KIND NAME for each thing, or is a want list or an SBOM. What is missing is listed, and no
    bundle is made.
    """
    layout = layout_of(root)
    items = read(_text_of(list_file), str(list_file))
    most = size(part_size) if part_size else parts.LARGEST if split else None
    store = store_of(layout)
    carried = take(store, appliance)
    with bar("Fetching") as seen:
        found = gather(settings(layout), store, items, targets(**chosen), keyring, say, seen)
    lacking = [*found.missing, *missing(store, carried, targets(**chosen))]
    if lacking:
        for line in lacking:
            say(f"missing: {to_ascii(line)}")
        say(f"no bundle was made: {len(lacking)} missing")
        sys.exit(EXIT_FAILURE)
    records = [*found.records.values(), *carried]
    total = sum({record.sha256: record.size for record in records}.values())
    signer = KeyPair(layout.keys, BUNDLE)
    with bar("Writing", total) as seen:
        manifest, files = write_bundle(store, records, output, signer, base, most, seen)
    for path in files:
        click.echo(path)
    say(f"bundle {manifest.serial}, signed by key {signer.fingerprint}")


def _text_of(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except OSError as error:
        raise TproxyError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TproxyError(f"{path} is no text: byte {error.start} is not UTF-8") from error


@bundle.command(epilog=example("tproxy egress bundle verify week12.tar"))
@file_argument
@click.option("--trust", default="", help="The fingerprint of the key that must have signed it.")
@root_option
def verify(file: Path, trust: str, root: Path | None) -> None:
    """Read a whole bundle, and say whether signature and hashes are right. Imports nothing."""
    trusted = reading.trusted_key(store_of(layout_of(root)).root)
    total = sum(path.stat().st_size for path in parts.of(file))
    with bar("Hashing", total) as seen:
        manifest = reading.verify_all(file, trusted, trust, seen)
    delta = f", a delta against {manifest.base}" if manifest.base else ""
    click.echo(f"{file}: bundle {manifest.serial} of {manifest.created} is whole and right{delta}")


@bundle.command("import", epilog=example("tproxy egress bundle import week12.tar --scan clamscan"))
@file_argument
@click.option("--trust", default="", help="Trust the key with this fingerprint from now on.")
@click.option("--downgrade", is_flag=True, help="Allow a bundle that is older than the active one.")
@click.option("--scan", help="A command that gets the bundle's files; if it fails, nothing is imported.")
@root_option
def import_(file: Path, trust: str, downgrade: bool, scan: str | None, root: Path | None) -> None:
    """Verify a bundle, put it into the store, and serve it."""
    try:
        scanner = shlex.split(scan or "")
    except ValueError as error:
        raise click.BadParameter(f"{scan!a} is no command: {error}", param_hint="--scan") from error
    store = store_of(layout_of(root))
    total = sum(path.stat().st_size for path in parts.of(file))
    with bar("Importing", total) as seen:
        manifest = importing.import_bundle(store, file, trust, downgrade, scanner, seen)
    click.echo(f"bundle {manifest.serial} of {manifest.created} is active")


@bundle.command("list", epilog=example("tproxy egress bundle list"))
@root_option
def list_(root: Path | None) -> None:
    """Print the bundles that were imported. "*" marks the active one."""
    store = store_of(layout_of(root))
    for serial in store.serials():
        manifest = store.manifest(serial)
        mark = "*" if serial == store.serial() else " "
        count = len({label(record) for record in store.layer(serial).all()} - {""})
        click.echo(f"{mark} {serial} {manifest['created']} {count} packages")


@bundle.command(epilog=example("tproxy egress bundle diff 11 12"))
@click.argument("old", type=int)
@click.argument("new", type=int)
@root_option
def diff(old: int, new: int, root: Path | None) -> None:
    """Print what bundle NEW adds ("+") and no longer has ("-") against OLD."""
    store = store_of(layout_of(root))
    for line in differences(store.layer(old).all(), store.layer(new).all()):
        click.echo(line)


@bundle.command(epilog=example("tproxy egress bundle rollback"))
@click.argument("serial", type=int, required=False)
@root_option
def rollback(serial: int | None, root: Path | None) -> None:
    """Serve an earlier bundle again: SERIAL, or the one before the active one."""
    click.echo(f"bundle {importing.rollback(store_of(layout_of(root)), serial)} is active")


@bundle.command(epilog=example("tproxy egress bundle key"))
@root_option
def key(root: Path | None) -> None:
    """Print the fingerprint of the key that signs this site's bundles."""
    pair = KeyPair(layout_of(root).keys, BUNDLE)
    pair.create()
    click.echo(pair.fingerprint)
