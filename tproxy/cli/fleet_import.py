"""fleet import: routes from the redis of a running TCP router."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click

from tproxy.cli.examples import example
from tproxy.console import EXIT_FAILURE, say
from tproxy.errors import TproxyError, to_ascii

HEAD = "# Made by `tproxy fleet import`, which writes it anew. A policy takes it with `include:`.\n"


@click.command(
    "import",
    epilog=example("tproxy fleet import redis://10.0.0.9 --network blue --output imported.yaml --follow"),
)
@click.argument("url")
@click.option("--network", required=True, help="The network of the guests.")
@click.option("--owner", default="", help="Whose routes they are.")
@click.option("--output", metavar="FILE", help="Where to write.  [default: stdout]")
@click.option("--password-file", metavar="FILE", help="The password of the redis.")
@click.option("--follow", is_flag=True, help="Go on, and write the file whenever something has changed.")
@click.option(
    "--interval", type=click.FloatRange(0.1, 3600), default=5.0, show_default=True, help="In seconds."
)
@click.option(
    "--allow-empty", is_flag=True, help="Take a redis without any service for the end of all routes."
)
def import_(
    url: str,
    network: str,
    owner: str,
    output: str | None,
    password_file: str | None,
    follow: bool,
    interval: float,
    allow_empty: bool,
) -> None:
    """Turn the keys tcprouter/service/… at URL, redis://HOST[:PORT][/DATABASE], into tproxy_routes.

    Each key that cannot become a route is named in one line; of one that was good before, what was there
    stays. While redis does not answer, the file stays. With --follow all keys are read again and again,
    because the notices of redis can be lost.
    """
    from tproxy.fleet.redis import services
    from tproxy.fleet.redis.client import Redis, RedisError

    if follow and not output:
        raise click.UsageError("--follow needs --output FILE")
    password = _password(password_file)
    redis = Redis(url, password)
    known: dict[str, services.Service] = {}
    text = ""
    said: set[str] = set()
    problems: set[str] = set()
    while True:
        problems = set()
        try:
            with redis as connected:
                found = connected.strings(*services.PATTERNS)
            good, bad = services.services(found)
            problems |= {f"{url}: key {to_ascii(key)}: {why}" for key, why in bad.items()}
            if known and not found and not allow_empty:
                problems.add(f"{url}: there is no service any more, so nothing is changed: --allow-empty")
            else:
                known = good | {key: each for key, each in known.items() if key in bad}
                text = _write(services.entries(known, network, owner), output, text)
        except RedisError as error:
            if not follow:
                raise
            problems.add(f"{error}; nothing is changed")
        for each in sorted(problems - said):
            say(each)
        said = problems
        if not follow:
            sys.exit(EXIT_FAILURE if problems else 0)
        time.sleep(interval)


def _password(file: str | None) -> str:
    if file is None:
        return ""
    try:
        return Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TproxyError(f"{file}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from error


def _write(entries: list[dict[str, object]], output: str | None, before: str) -> str:
    """Write the entries unless that was written before; return the text."""
    from tproxy.fleet.held import write

    lines = [f"- {json.dumps(each)}\n" for each in entries]  # JSON is YAML too
    text = HEAD + ("tproxy_routes:\n" + "".join(lines) if lines else "tproxy_routes: []\n")
    if text != before:
        if output is None:
            click.echo(text, nl=False)
        else:
            write(Path(output), text, 0o644)
            click.echo(f"{output}: {len(entries)} routes")
            sys.stdout.flush()
    return text
