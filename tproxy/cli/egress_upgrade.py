"""egress upgrade: the appliance itself, from a bundle."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

import tproxy
from tproxy.cli.egress_root import layout_of, root_option, store_of
from tproxy.cli.examples import example
from tproxy.console import require_root
from tproxy.egress.upgrade import debs, services, wheels
from tproxy.egress.upgrade.staging import Staged, staged
from tproxy.errors import TproxyError, to_ascii


@click.command(
    epilog=example("tproxy egress upgrade --from 12 --dry-run", "tproxy egress upgrade --from week12.tar")
)
@click.option("--from", "source", help="A bundle's file, or the serial of one that was imported.")
@click.option("--trust", default="", help="The fingerprint of the key that must have signed the file.")
@click.option("--downgrade", is_flag=True, help="Allow a version that is older than the one that runs.")
@click.option("--dry-run", is_flag=True, help="Verify all, and print what would change.")
@click.option("--image", type=click.Path(path_type=Path), help="Only write the OCI archive to this file.")
@click.option("--back", is_flag=True, help="Return to what ran before the last upgrade from wheels.")
@root_option
def upgrade(
    source: str | None,
    trust: str,
    downgrade: bool,
    dry_run: bool,
    image: Path | None,
    back: bool,
    root: Path | None,
) -> None:
    """Install tproxy from a verified bundle without a network, and start the services again."""
    require_root()
    if back == (source is not None):
        raise TproxyError("give one of --from and --back")
    prefix = Path(sys.prefix)
    if source is None:
        click.echo(f"back at tproxy {wheels.back(prefix)}")
        click.echo(services.restart())
        return
    with staged(store_of(layout_of(root)), source, trust) as found:
        if image is not None:
            try:
                shutil.copyfile(found.folder / found.tproxy("tar").file, image)
            except OSError as error:
                raise TproxyError(f"cannot write {image}: {error.strerror}") from error
            click.echo(f"{image}: for podman load --input, or ctr images import")
            return
        changed = _lines(found, downgrade)
        for line in changed:
            click.echo(to_ascii(line))
        if dry_run or not changed:
            click.echo("nothing was changed" if changed else "nothing to change")
            return
        if _in_environment():
            wheels.install(found, prefix)
            click.echo(f"the way back: tproxy egress upgrade --back ({wheels.other(prefix)})")
        else:
            debs.install(found)
            click.echo("the way back: --from an earlier bundle, with --downgrade")
    click.echo(services.restart())


def _in_environment() -> bool:
    """Tell whether tproxy runs from a virtual environment, and not from its Debian package."""
    if sys.prefix != sys.base_prefix:
        return True
    if debs.owns(tproxy.__file__):
        return False
    raise TproxyError("tproxy runs neither from a virtual environment nor from its Debian package")


def _lines(found: Staged, downgrade: bool) -> list[str]:
    if not _in_environment():
        return debs.changes(found, downgrade)
    changes = wheels.changes(found, sys.executable, downgrade)
    return [f"{name} {now or 'none'} -> {then}" for name, (now, then) in changes.items()]
