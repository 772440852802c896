"""What of ours goes where in OpenNebula's remotes: the tree that ``onehost sync`` spreads to hypervisors."""

from __future__ import annotations

import shlex
from pathlib import Path

from tproxy.config import reader
from tproxy.errors import TproxyError
from tproxy.platforms.install import Piece, template

# Network drivers that put guests on Linux bridges, and those whose guests get a refusal in the log;
# OpenNebula's versions have some of them each.
DRIVERS = ("802.1Q", "bridge", "dummy", "ebtables", "elastic", "fw", "nodeport", "vxlan")
REFUSED_DRIVERS = ("ovswitch", "ovswitch_vxlan")
PHASES = ("pre", "post", "clean")

HOOK = "tproxy"  # without an extension: run-parts(8), which runs the hooks of some drivers, skips others
SUDOERS = "tproxy"  # without a dot: sudo skips files that have one, sudoers(5)


def pieces(
    remotes: Path, command: Path, *, drop_in: bool = False, strict: bool = False, services: Path | None = None
) -> list[Piece]:
    """All files to have. ``drop_in``: no hooks, since OpenNebula's own driver makes the bridges ready.

    Raises TproxyError when these are not OpenNebula's remotes, or when both would do it.
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
    _require_no_other(remotes)
    found.append(Piece(vnm / "tproxy_hook.py", template("opennebula/tproxy_hook.py"), 0o644))
    if strict or services:
        given = {"STRICT": "yes" if strict else "no", "CONFIG": str(services or "")}
        found.append(Piece(_settings(remotes), template("opennebula/settings", **given), 0o644))
    hook = template("opennebula/hook")
    return found + [Piece(path, hook) for path in _hooks(vnm) if path.parents[1].is_dir()]


def places(remotes: Path) -> list[Path]:
    """Where any version of ours may have put something."""
    vnm = remotes / "vnm"
    # The command first: a hook without it says so, it without hooks is of use.
    others = (vnm / "tproxy_hook.py", _settings(remotes), vnm / "tproxy.sudoers", vnm / "tproxy")
    return [*_hooks(vnm), *others]


def sudoers(folder: Path) -> Piece:
    """The snippet, where sudo reads it."""
    return Piece(folder / SUDOERS, template("opennebula/sudoers"), 0o440)


def require_remotes(remotes: Path) -> None:
    """Raise TproxyError when it is not OpenNebula's tree."""
    if not (remotes / "vnm").is_dir():
        raise TproxyError(f"{remotes} has no folder vnm: not OpenNebula's remotes, give --remotes DIR")


def _settings(remotes: Path) -> Path:
    return remotes / "etc/vnm/tproxy.conf"


def _hooks(vnm: Path) -> list[Path]:
    return [vnm / driver / f"{phase}.d" / HOOK for driver in (*DRIVERS, *REFUSED_DRIVERS) for phase in PHASES]


def _require_no_other(remotes: Path) -> None:
    conf = remotes / "etc/vnm/OpenNebulaNetwork.conf"
    if (remotes / "vnm/tproxy.rb").exists() and conf.exists() and reader.load(conf).entries:
        raise TproxyError(
            f"OpenNebula's own driver serves what {conf} has in :tproxy:, two would fight: "
            "give --drop-in, or --config FILE with the services, and none in :tproxy:"
        )
