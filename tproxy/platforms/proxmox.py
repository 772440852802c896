"""Proxmox VE: ``tproxy event proxmox VMID PHASE``, and its hookscript.

The NICs of a guest are in its configuration. At `pre-start` its taps do not exist, and a bridge that Proxmox
makes for a VLAN need not exist either, so `post-start` brings the bridges up again. Proxmox does not call
`post-stop` for some guests that shut down from inside: `tproxy gc` and `tproxy watch` remove what they leave.

Which bridge has the services:

* With ``firewall=1`` the guest is on a bridge of its own, fwbr<vmid>i<n>, and a veth pair connects that to
  the bridge of the configuration. The latter has the services: one relay for all its guests.
* With ``tag=`` on a plain bridge Proxmox puts the guest on the bridge <bridge>v<tag>, which has the services.
* With ``tag=`` on a VLAN-aware bridge the tag is the PVID of the guest's port, and our port is in another
  VLAN. This is not supported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from tproxy.bridge.members import Nics
from tproxy.console import require_root
from tproxy.errors import TproxyError
from tproxy.kernel import links
from tproxy.names import check_interface_name
from tproxy.platforms import calls
from tproxy.platforms.calls import Call, Down, Fault, Refusal, Up
from tproxy.platforms.install import Piece, hook

ROOT = "/etc/pve"
MAX_BYTES = 1 << 20  # the largest file that pmxcfs, the file system of /etc/pve, allows
UP = frozenset({"pre-start", "post-start"})
DOWN = frozenset({"post-stop"})

_VMID = re.compile(r"[1-9][0-9]{2,8}\Z", re.ASCII)
_NIC = re.compile(r"net([0-9]{1,2}):[ \t]*(.*)\Z", re.ASCII)
_TAG = re.compile(r"[1-9][0-9]{0,3}\Z", re.ASCII)


class Kind(Enum):
    """What the name of a bridge stands for on this host."""

    MISSING = "missing"
    PLAIN = "plain"
    VLAN_AWARE = "VLAN-aware"
    OTHER = "no Linux bridge"


class Nic(NamedTuple):
    """A NIC of a guest's configuration, net<number>."""

    number: int
    bridge: str
    tag: str  # the VLAN, as it is written; empty for none
    macs: frozenset[str] = frozenset()  # its MAC
    firewall: bool = False  # whether it is on a bridge of its own


def pieces(snippets: Path, *, strict: bool) -> list[Piece]:
    """Return the files to install into the snippets folder of a storage."""
    text = hook("proxmox/hook", strict=strict)
    return [Piece(path, text) for path in places(snippets)]


def places(snippets: Path) -> list[Path]:
    """Return the paths at which any version of tproxy may have installed a file."""
    return [snippets / "tproxy"]


def nics(configuration: str) -> list[Nic]:
    """Return the NICs of a guest's configuration that are on bridges."""
    found = []
    for line in configuration.split("\n"):
        if line.startswith("["):  # pending changes and snapshots follow the guest's own lines
            break
        if match := _NIC.match(line.rstrip()):
            options = dict(part.partition("=")[::2] for part in match[2].split(","))
            if options.get("bridge"):
                # A VM's NIC begins with its model, as in virtio=BC:24:11:00:00:01; a container's has hwaddr=.
                macs = frozenset[str]().union(*map(calls.macs_of, options.values()))
                firewall = options.get("firewall") == "1"
                found.append(Nic(int(match[1]), options["bridge"], options.get("tag", ""), macs, firewall))
    return found


def ports(vmid: str, nic: Nic) -> set[str]:
    """Return the names of a NIC's ports in Proxmox: a tap, a container's veth, the firewall's veth."""
    return {f"fwpr{vmid}p{nic.number}", *_without_firewall(vmid, nic)}


def _without_firewall(vmid: str, nic: Nic) -> set[str]:
    return {f"tap{vmid}i{nic.number}", f"veth{vmid}i{nic.number}"}


def _nics(vmid: str, nic: Nic) -> Nics:
    """Return what hooks say of a NIC. A port that its kind of guest does not have does no harm."""
    at = {f"fwpr{vmid}p{nic.number}"} if nic.firewall else _without_firewall(vmid, nic)
    return calls.nics_of(nic.macs, at)


def guest_calls(vmid: str, phase: str, found: list[Nic], kind: Callable[[str], Kind]) -> Iterator[Call]:
    """Yield the calls that a phase asks for. ``kind`` tells what a name stands for on this host."""
    gone = frozenset[str]().union(*(ports(vmid, nic) for nic in found))
    for nic in found:
        try:
            bridge = _bridge(nic, kind)
        except TproxyError as error:
            yield Fault(f"net{nic.number}: {error}")
            continue
        if isinstance(bridge, Refusal):
            if phase == "pre-start":  # once for each start
                yield bridge
        elif phase in DOWN:
            yield Down(bridge, gone, _nics(vmid, nic))
        elif phase != "pre-start" or kind(bridge) is not Kind.MISSING:
            yield Up(bridge, bridge, _nics(vmid, nic))


def _bridge(nic: Nic, kind: Callable[[str], Kind]) -> str | Refusal:
    """Return the bridge that serves a NIC, or why none does. Raises TproxyError for a bad name or tag."""
    found = kind(check_interface_name(nic.bridge))
    if found is Kind.OTHER:
        return Refusal(f"net{nic.number}: {nic.bridge} is no Linux bridge (Open vSwitch is not supported)")
    if not nic.tag:
        return nic.bridge
    if not _TAG.match(nic.tag):
        raise TproxyError(f"tag {nic.tag!a} is no VLAN")
    if found is Kind.VLAN_AWARE:
        return Refusal(f"net{nic.number}: VLAN {nic.tag} of VLAN-aware bridge {nic.bridge}: not supported")
    return check_interface_name(f"{nic.bridge}v{nic.tag}")


def read_configuration(root: Path, vmid: str, environ: Mapping[str, str]) -> str:
    """Return the text of a guest's configuration. Raises TproxyError when it cannot be read.

    The file can be in another node's folder, since it moves there at the end of a migration. ``environ`` is
    the environment of the hookscript, in which Proxmox names the node that a guest comes from.
    """
    path = next(filter(Path.exists, _candidates(root, vmid, environ)), None)
    if path is None:
        raise TproxyError(f"no configuration of guest {vmid} below {root}")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise TproxyError(f"{path}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise TproxyError(f"{path}: larger than {MAX_BYTES} bytes")
    return data.decode(errors="surrogateescape")


def _candidates(root: Path, vmid: str, environ: Mapping[str, str]) -> Iterator[Path]:
    kinds = ("qemu-server", "lxc")
    yield from (root / kind / f"{vmid}.conf" for kind in kinds)
    source = environ.get("PVE_MIGRATED_FROM", "")
    if source and "/" not in source and "\0" not in source:
        yield from (root / "nodes" / source / kind / f"{vmid}.conf" for kind in kinds)
    # A number belongs to one guest in the cluster. After a migration only the target has the file.
    yield from (path for kind in kinds for path in sorted(root.glob(f"nodes/*/{kind}/{vmid}.conf")))


def _event(arguments: list[str]) -> Iterable[Call]:
    require_root()
    if len(arguments) < 2:
        raise TproxyError("called without the number of a guest and a phase")
    vmid, phase = arguments[:2]
    if not _VMID.match(vmid):
        raise TproxyError(f"{vmid!a} is not the number of a guest")
    if phase not in UP | DOWN:
        return ()
    root = Path(os.environ.get("TPROXY_PVE_ROOT") or ROOT)
    found = nics(read_configuration(root, vmid, os.environ))
    return list(guest_calls(vmid, phase, found, _kind))


def _kind(name: str) -> Kind:
    name = links.real_name(name)
    if not links.exists(name):
        return Kind.MISSING
    if not links.is_bridge(name):
        return Kind.OTHER
    try:
        filtering = (Path("/sys/class/net") / name / "bridge/vlan_filtering").read_text().strip()
    except FileNotFoundError:
        return Kind.PLAIN  # a kernel without VLAN filtering
    return Kind.VLAN_AWARE if filtering == "1" else Kind.PLAIN


def handle_event(arguments: list[str], *, debug: bool) -> int:
    """Handle one event, given as Proxmox VE passes it to a hookscript; return the exit code."""
    return calls.run(" ".join(["proxmox", *arguments[:2]]), lambda: _event(arguments), debug=debug)
