"""OpenNebula: which files tproxy installs into its remotes, the tree that ``onehost sync`` copies to hosts.

OpenNebula's events are handled on the hypervisor, by drivers/opennebula/tproxy_hook.py.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from tproxy.config import reader
from tproxy.errors import TproxyError
from tproxy.platforms.install import Piece, template

# The network drivers that put guests on Linux bridges, and those that do not: their guests get a refusal in
# the log. Each version of OpenNebula has some of them.
DRIVERS = ("802.1Q", "bridge", "dummy", "ebtables", "elastic", "fw", "nodeport", "vxlan")
REFUSED_DRIVERS = ("ovswitch", "ovswitch_vxlan")
PHASES = ("pre", "post", "clean")

HOOK = "tproxy"  # no extension: run-parts(8), which runs the hooks of some drivers, skips files that have one
SUDOERS = "tproxy"  # no dot: sudo skips files that have one, sudoers(5)


def pieces(
    remotes: Path, command: Path, *, drop_in: bool = False, strict: bool = False, services: Path | None = None
) -> list[Piece]:
    """Return the files to install into ``remotes``.

    ``command`` is the path of tproxy on the hypervisors. With ``drop_in`` there are no hooks, because
    OpenNebula's own driver prepares the bridges. ``services`` is a file with the services on the hypervisors.
    Raises TproxyError when these are not OpenNebula's remotes, or when OpenNebula's own driver would manage
    the same bridges as the hooks.
    """
    require_remotes(remotes)
    vnm = remotes / "vnm"
    launcher = template("opennebula/command", COMMAND=shlex.quote(str(command)))
    found = [
        Piece(vnm / "tproxy", launcher, replaces=True),
        Piece(vnm / "tproxy.sudoers", template("opennebula/sudoers"), 0o644),
    ]
    if drop_in:
        return found
    _require_no_own_service(remotes)
    found.append(Piece(vnm / "tproxy_hook.py", template("opennebula/tproxy_hook.py"), 0o644))
    if strict or services:
        given = {"STRICT": "yes" if strict else "no", "CONFIG": str(services or "")}
        found.append(Piece(_settings(remotes), template("opennebula/settings", **given), 0o644))
    hook = template("opennebula/hook")
    return found + [Piece(path, hook) for path in _hooks(vnm) if path.parents[1].is_dir()]


def places(remotes: Path) -> list[Path]:
    """Return the paths at which any version of tproxy may have installed a file."""
    vnm = remotes / "vnm"
    # The command goes last: without hooks it is still of use, and a hook without it reports an error.
    others = (vnm / "tproxy_hook.py", _settings(remotes), vnm / "tproxy.sudoers", vnm / "tproxy")
    return [*_hooks(vnm), *others]


def sudoers(folder: Path) -> Piece:
    """Return the sudoers snippet in the folder where sudo reads it."""
    return Piece(folder / SUDOERS, template("opennebula/sudoers"), 0o440)


def require_remotes(remotes: Path) -> None:
    """Raise TproxyError when the folder is not OpenNebula's remotes."""
    if not (remotes / "vnm").is_dir():
        raise TproxyError(f"{remotes} has no folder vnm: not OpenNebula's remotes, give --remotes DIR")


def _settings(remotes: Path) -> Path:
    return remotes / "etc/vnm/tproxy.conf"


def _hooks(vnm: Path) -> list[Path]:
    return [vnm / driver / f"{phase}.d" / HOOK for driver in (*DRIVERS, *REFUSED_DRIVERS) for phase in PHASES]


def _require_no_own_service(remotes: Path) -> None:
    conf = remotes / "etc/vnm/OpenNebulaNetwork.conf"
    if (remotes / "vnm/tproxy.rb").exists() and conf.exists() and reader.load(conf).entries:
        raise TproxyError(
            f"OpenNebula's own driver serves the entries of :tproxy: in {conf}, and both would manage "
            "the same bridges: give --drop-in, or move the entries to another file and give --config FILE"
        )
