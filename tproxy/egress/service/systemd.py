"""Installs, starts, stops and removes the egress as services of systemd.

The units are in drivers/egress/. This command's own path goes into them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from tproxy import __version__
from tproxy.egress.layout import Layout
from tproxy.egress.policy.reader import load
from tproxy.egress.service import guard, ports, squids
from tproxy.egress.service.systemctl import systemctl, tried
from tproxy.egress.squid.authority import peer_certificates
from tproxy.egress.store.durable import replace
from tproxy.errors import ProcessError, TproxyError

UNITS = Path("/etc/systemd/system")
ROTATION = Path("/etc/logrotate.d/tproxy-egress")
SERVICES = (squids.MANAGER, "tproxy-egress-mirror.service", "tproxy-egress-front.service")
OTHERS = ("tproxy-egress.target", "tproxy-egress-reload.path", "tproxy-egress-reload.service")
STARTED_BY_OTHERS = ("tproxy-egress-squid@.service", squids.DRAINING)

# Only where hypervisors elsewhere use this node, and on those hypervisors.
HOSTS, LINK = "tproxy-egress-hosts.service", "tproxy-egress-link.service"

# Debian's packages, each with a file by which it is known. Repositories of sealed sites need aptly and gpg.
PACKAGES = {
    "squid-openssl": "/usr/lib/squid/security_file_certgen",
    "nftables": "/usr/sbin/nft",
    "minisign": "/usr/bin/minisign",
    "gpg": "/usr/bin/gpg",
    "aptly": "/usr/bin/aptly",
    "logrotate": "/usr/sbin/logrotate",
}
_HAPROXY = {"haproxy": "/usr/sbin/haproxy"}

# Debian would start a squid of its own, on the port that ours needs, and a HAProxy that does nothing.
_DEBIANS = {"squid-openssl": "squid.service", "haproxy": "haproxy.service"}

_POLICY = """\
# Which network may fetch what. The first rule that matches decides; without one, a request is denied.
# `tproxy egress check` finds errors. docs/egress.md has all keys.
mode: dmz
rules: []
"""


def up() -> list[str]:
    """Install what is missing, start everything, and return lines to show. Raises TproxyError."""
    require_systemd()
    layout = Layout()
    if not layout.policy.exists():
        layout.etc.mkdir(parents=True, exist_ok=True)
        layout.policy.write_text(_POLICY)
    policy = load(layout.policy)
    services = (*SERVICES, *([HOSTS] if policy.listen.hosts else []))
    _install_packages({**PACKAGES, **(_HAPROXY if policy.listen.hosts else {})})
    if not _active() and (taken := ports.taken(policy)):
        raise ProcessError("; ".join(taken))
    layout.log.mkdir(parents=True, exist_ok=True)
    peer_certificates(layout.peer)  # the mirror, which starts first, shows one to squid
    changed = [name for name in (*services, *OTHERS, *STARTED_BY_OTHERS) if _write(name)]
    replace(ROTATION, _driver("tproxy-egress.logrotate").encode(), 0o644)
    systemctl("daemon-reload")
    systemctl("enable", "--now", "tproxy-egress.target", "tproxy-egress-reload.path", *services)
    if stale := [name for name in services if name in changed]:
        systemctl("restart", *stale)
    return [f"running, by the policy {layout.policy}", "fingerprint of the authority: tproxy egress ca"]


def join(file: Path) -> list[str]:
    """Reach a node elsewhere from this hypervisor. Return lines to show. Raises TproxyError."""
    require_systemd()
    _install_packages({"nftables": PACKAGES["nftables"], **_HAPROXY})
    layout = Layout()
    layout.etc.mkdir(parents=True, exist_ok=True)
    replace(layout.link, file.read_bytes(), 0o600)
    _write(LINK)
    systemctl("daemon-reload")
    systemctl("enable", LINK)
    systemctl("restart", LINK)
    return [f"linked, by {layout.link}; remove {file}, which holds the key"]


def down(*, purge: bool) -> list[str]:
    """Stop everything, remove the units, and with ``purge`` all that the egress keeps. Raises TproxyError."""
    require_systemd()
    ours = ("tproxy-egress.target", *SERVICES, HOSTS, LINK, *OTHERS[1:])
    names = [name for name in ours if (UNITS / name).exists()]
    if names:
        systemctl("disable", "--now", *names)
        tried("stop", *squids.INSTANCES, squids.DRAINING)
        for name in (*names, *STARTED_BY_OTHERS):
            (UNITS / name).unlink(missing_ok=True)
        systemctl("daemon-reload")
    ROTATION.unlink(missing_ok=True)
    for table in (guard.TABLE, guard.LINK_TABLE):
        guard.remove(table)
    layout = Layout()
    if not purge:
        return [f"stopped; {layout.state} is kept"]
    for service in (service for service in _DEBIANS.values() if _masked(layout, service).exists()):
        systemctl("unmask", service)  # it is not enabled, since it was masked when it was installed
    for directory in (layout.state, layout.run, layout.log):
        shutil.rmtree(directory, ignore_errors=True)
    layout.link.unlink(missing_ok=True)
    kept = ["Debian's packages"]
    if layout.policy.exists() and layout.policy.read_text() == _POLICY:
        layout.policy.unlink()
    elif layout.policy.exists():
        kept.append(str(layout.policy))
    return [f"stopped, and removed {layout.state} with the authority; kept: {', '.join(kept)}"]


def unit(name: str) -> str:
    """Return the text of a unit, in which "tproxy" is the command that runs now, of this version."""
    return _driver(name).replace("=tproxy ", f"={sys.executable} -m tproxy ") + f"\n# tproxy {__version__}\n"


def _driver(name: str) -> str:
    return files("tproxy").joinpath(f"drivers/egress/{name}").read_text(encoding="utf-8")


def _write(name: str) -> bool:
    """Write a unit. Return whether there was one that differs, as after an upgrade."""
    path, text = UNITS / name, unit(name)
    before = path.read_text() if path.exists() else text
    path.write_text(text)
    return before != text


def require_systemd() -> None:
    """Raise ProcessError unless systemd runs this host, sd_booted(3)."""
    if not os.path.isdir("/run/systemd/system"):
        raise ProcessError("systemd does not run here: tproxy egress up --foreground")


def _active() -> bool:
    return tried("is-active", "--quiet", SERVICES[0]).returncode == 0


def _install_packages(needed: Mapping[str, str]) -> None:
    missing = [package for package, file in needed.items() if not Path(file).exists()]
    if not missing:
        return
    for service in (service for package, service in _DEBIANS.items() if package in missing):
        systemctl("mask", service)
        note = _masked(Layout(), service)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "-q", "update"], check=False, env=environment)  # what it lacks, install tells
    command = ["apt-get", "-q", "install", "-y", "--no-install-recommends", *missing]
    if subprocess.run(command, check=False, env=environment).returncode:
        raise TproxyError(f"apt-get failed: install {', '.join(missing)} by hand")


def _masked(layout: Layout, service: str) -> Path:
    """Return the file that says that this command has masked a service."""
    return layout.state / "masked" / service
