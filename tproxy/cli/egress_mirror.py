"""egress mirror: what the node keeps in advance, and the mirror itself."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any

import click

from tproxy.cli.egress_root import layout_of, root_option, store_of
from tproxy.cli.examples import example
from tproxy.cli.progress import bar
from tproxy.console import EXIT_FAILURE, say
from tproxy.egress.gather.gathering import KEYRING
from tproxy.egress.gather.lists import KINDS, Targets
from tproxy.egress.layout import Layout
from tproxy.egress.ledger import queries
from tproxy.egress.mirror import keeping, running
from tproxy.egress.mirror.settings import Settings, settings_of
from tproxy.egress.mirror.site_key import SiteKey
from tproxy.egress.policy.reader import load
from tproxy.errors import ConfigError, to_ascii
from tproxy.process.service_manager import report_ready

PORT = click.IntRange(0, 65535)
SIZES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def settings(layout: Layout, quota: int | None = None) -> Settings:
    """Return the mirror's settings as the policy has them."""
    return settings_of(load(layout.policy), layout.store, quota)


_TARGET_OPTIONS = (
    click.option("--python", multiple=True, help="A version of Python, as 3.11."),
    click.option(
        "--platform",
        multiple=True,
        help="A platform of wheels, as manylinux_2_36_x86_64, with all older ones.",
    ),
    click.option("--suite", multiple=True, help="A Debian suite, as bookworm."),
    click.option("--arch", multiple=True, help="A Debian architecture, as amd64."),
    click.option("--image-platform", multiple=True, help="An image's platform, as linux/amd64."),
    click.option("--keyring", default=KEYRING, show_default=True, help="The keys of Debian suites."),
)


def target_options(command: click.decorators.FC) -> click.decorators.FC:
    """Give a command the options that say for which machines things are gathered."""
    for option in reversed(_TARGET_OPTIONS):
        command = option(command)
    return command


def targets(
    python: tuple[str, ...],
    platform: tuple[str, ...],
    suite: tuple[str, ...],
    arch: tuple[str, ...],
    image_platform: tuple[str, ...],
) -> Targets:
    """Return the targets that were given; those that were not have their defaults."""
    given = {"pythons": python, "platforms": platform, "suites": suite}
    given |= {"architectures": arch, "images": image_platform}
    return Targets()._replace(**{name: values for name, values in given.items() if values})


@click.group()
def mirror() -> None:
    """Edit what the mirror keeps in advance, update it, and see what is wanted."""


@mirror.command(epilog=example('tproxy egress mirror add pypi "django>=4"'))
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("name")
@root_option
def add(kind: str, name: str, root: Path | None) -> None:
    """Keep NAME in advance. The next update fetches it, with all that it depends on."""
    added = keeping.add(store_of(layout_of(root)), kind, name)
    click.echo(f"{kind} {to_ascii(name)} is kept in advance{'' if added else ' already'}")


@mirror.command(epilog=example('tproxy egress mirror remove pypi "django>=4"'))
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("name")
@root_option
def remove(kind: str, name: str, root: Path | None) -> None:
    """Keep NAME in advance no longer. Its files go when their room is needed."""
    if not keeping.remove(store_of(layout_of(root)), kind, name):
        say(f"{kind} {to_ascii(name)} is not kept in advance")
        sys.exit(EXIT_FAILURE)
    click.echo(f"{kind} {to_ascii(name)} is kept in advance no longer")


@mirror.command("list", epilog=example("tproxy egress mirror list"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@root_option
def list_kept(as_json: bool, root: Path | None) -> None:
    """Print what is kept in advance."""
    kept = store_of(layout_of(root)).kept()
    if as_json:
        click.echo(json.dumps([{"kind": kind, "name": name} for kind, name in kept]))
        return
    for kind, name in kept:
        click.echo(f"{kind} {name}")


@mirror.command(epilog=example("tproxy egress mirror update --suite bookworm --arch amd64"))
@click.argument("kind", type=click.Choice(KINDS), required=False)
@click.argument("name", required=False)
@target_options
@root_option
def update(kind: str | None, name: str | None, keyring: str, root: Path | None, **chosen: Any) -> None:
    """Fetch what is kept in advance, or only NAME. Exit code 75 says that another update is running."""
    if kind and not name:
        raise click.UsageError("KIND needs a NAME")
    only = (kind, name) if kind and name else None
    try:
        with bar("Fetching") as seen:
            missing = keeping.update(settings(layout_of(root)), targets(**chosen), keyring, say, seen, only)
    except keeping.Busy as error:
        say(str(error))
        sys.exit(keeping.EXIT_BUSY)
    for line in missing:
        say(f"missing: {to_ascii(line)}")
    sys.exit(EXIT_FAILURE if missing else 0)


@mirror.command(epilog=example("tproxy egress mirror wanted --json > wants.json"))
@click.option("--json", "as_json", is_flag=True, help="Print a list that `bundle create` takes.")
@click.option("--clear", is_flag=True, help="Empty the list after printing it.")
@root_option
def wanted(as_json: bool, clear: bool, root: Path | None) -> None:
    """Print what was asked for and is not here."""
    store = store_of(layout_of(root))
    found = store.wanted()
    if as_json:
        click.echo(json.dumps(found, indent=1))
    for each in [] if as_json else found:
        name = " ".join(filter(None, (each["kind"], each["name"], each["version"])))
        click.echo(to_ascii(f"{name}: {each['count']} times by network {each['network'] or '?'}"))
    if clear:
        store.clear_wanted()


@mirror.command("verify", epilog=example("tproxy egress mirror verify"))
@root_option
def verify(root: Path | None) -> None:
    """Hash everything in the store. Damaged files go to quarantine, and are fetched again when asked for."""
    store = store_of(layout_of(root))
    store.blobs.adopt_all()
    with bar("Hashing", store.used()) as seen:
        damaged = store.blobs.scrub(seen)
    for sha256 in damaged:
        names = ", ".join(sorted({f"{each.kind} {each.name} {each.file}" for each in store.by_hash(sha256)}))
        say(f"damaged: {sha256} {to_ascii(names)}")
    sys.exit(EXIT_FAILURE if damaged else 0)


@mirror.command("site-key", epilog=example("tproxy egress mirror site-key --rotate"))
@click.option("--rotate", is_flag=True, help="Make a new key; from the next import on, old and new one sign.")
@click.option("--finish", is_flag=True, help="Remove all keys but the newest.")
@root_option
def site_key(rotate: bool, finish: bool, root: Path | None) -> None:
    """Print the key that signs sealed Debian suites."""
    key = SiteKey(layout_of(root).store)
    key.create()
    if rotate:
        key.rotate()
    if finish:
        key.finish()
    click.echo(key.public.read_text(), nl=False)


@mirror.command(epilog=example("tproxy egress mirror run --quota 30G"))
@click.option("--quota", help="The most that the store may hold, as 30G.")
@click.option(
    "--guests-port", type=PORT, help="For connections with a PROXY header, instead of the policy's."
)
@click.option(
    "--clients-port", type=PORT, default=0, help="For hosts that the policy's `clients` names; 0 for none."
)
@click.option(
    "--update-every", default="1d", show_default=True, help="How often to update what is kept; 0s is never."
)
@root_option
def run(
    quota: str | None, guests_port: int | None, clients_port: int, update_every: str, root: Path | None
) -> None:
    """Run the mirror in the foreground."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    bound = size(quota) if quota else None
    every = queries.seconds(update_every)
    asyncio.run(running.run(layout_of(root), bound, guests_port, clients_port, every, _ready))


def _ready() -> None:
    """Tell systemd, and whoever reads the log, that all sockets listen."""
    report_ready()
    say("the mirror listens")


def size(text: str) -> int:
    """Return bytes from text such as 30G. Raises ConfigError."""
    number, unit = (text[:-1], SIZES[text[-1].upper()]) if text[-1:].upper() in SIZES else (text, 1)
    if not number.isdecimal() or not int(number):
        raise ConfigError(f"{text!a} is no size such as 30G")
    return int(number) * unit
