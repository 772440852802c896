"""Makes what squid needs before it starts: directories, authority, configuration, certificate store."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tproxy.egress.own_addresses import own_addresses
from tproxy.egress.policy.rules import Policy
from tproxy.egress.squid.authority import Authority, fingerprint, peer_certificates
from tproxy.egress.squid.compiler import (
    CERTIFICATE_HELPER,
    PAGE,
    PAGES,
    Surroundings,
    cache,
    certificates,
    compiled,
    errors,
)
from tproxy.errors import ProcessError, TproxyError

SQUID = "squid"

_PAGES = Path("/usr/share/squid/errors/templates")

_PAGE = """\
<html><head><title>denied</title></head><body><p>tproxy egress: denied: %o</p></body></html>
"""


def prepare(policy: Policy, node: Surroundings) -> list[str]:
    """Make what is missing, write the configuration, and return lines to show.

    Raises TproxyError, for instance when squid refuses the configuration.
    """
    if shutil.which(SQUID) is None or not Path(CERTIFICATE_HELPER).exists():
        raise TproxyError("squid with OpenSSL is missing: apt install squid-openssl")
    try:
        user = pwd.getpwnam(node.user)
    except KeyError:
        raise TproxyError(f"there is no user {node.user}, as whom squid runs") from None
    layout = node.layout
    _check_readable(layout.policy, user)
    for directory in (layout.state, layout.run, layout.log):
        directory.mkdir(parents=True, exist_ok=True, mode=0o755)
    for own in (layout.log, layout.state / "squid"):
        own.mkdir(exist_ok=True, mode=0o755)
        os.chown(own, user.pw_uid, user.pw_gid)
    authority = Authority(layout.authority)
    created = authority.ensure()
    peer_certificates(layout.peer)
    errors(node).mkdir(exist_ok=True)
    for page in _PAGES.glob("*"):  # squid's own: it complains of each that is not beside ours
        with suppress(FileExistsError):
            (errors(node) / page.name).symlink_to(page)
    (errors(node) / PAGE).write_text(_PAGE)
    for name, reason in PAGES.items():
        (errors(node) / f"{PAGE}_{name.upper()}").write_text(_PAGE.replace("%o", reason))
    conf = configuration(node)
    conf.write_text(text(policy, node))
    _certificate_store(node, user)
    if not (cache(node) / "00").exists():
        _run(*squid_command(node), "-z")
    return [*_shown(authority, created), *filter(None, [authority.warning()])]


def _check_readable(policy: Path, user: pwd.struct_passwd) -> None:
    """Raise TproxyError unless squid's user can read the policy: its helper reads it, as that user."""
    done = subprocess.run(
        ["cat", str(policy)],
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        raise TproxyError(f"{policy} cannot be read by the user {user.pw_name}: chmod o+r {policy}")


def text(policy: Policy, node: Surroundings) -> str:
    """Return squid's configuration, with this node's addresses as they are now."""
    return compiled(policy, replace(node, own=own_addresses()))


def configuration(node: Surroundings) -> Path:
    return node.layout.run / f"squid-{node.slot}.conf"


def squid_command(node: Surroundings) -> list[str]:
    """Return the command that runs squid in the foreground, with one process."""
    return [SQUID, "-N", "-n", f"egress{node.slot}", "-f", str(configuration(node))]


def check(node: Surroundings) -> None:
    """Raise ProcessError unless squid accepts the configuration as it is written."""
    _run(*squid_command(node), "-k", "parse")


def _shown(authority: Authority, created: bool) -> list[str]:
    certificate = authority.load()
    lines = [f"authority {'created' if created else 'is there'}: {authority.certificate}"]
    lines.append(f"SHA-256 fingerprint: {fingerprint(certificate)}")
    return [*lines, *authority.certificate.read_text().splitlines()] if created else lines


def _certificate_store(node: Surroundings, user: pwd.struct_passwd) -> None:
    """Make the directory in which squid's helper keeps the certificates that it makes."""
    wanted = certificates(node)
    for old in wanted.parent.glob("certificates-*"):
        if old != wanted:
            shutil.rmtree(old)
    if (wanted / "size").exists():
        return
    shutil.rmtree(wanted, ignore_errors=True)
    _run(CERTIFICATE_HELPER, "-c", "-s", str(wanted), "-M", "16MB")
    for path in (wanted, *wanted.rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        telling = (
            [line for line in lines if "FATAL" in line or "ERROR" in line] or lines or ["no reason given"]
        )
        raise ProcessError(f"{command[0]} failed: {telling[0].strip()}")
