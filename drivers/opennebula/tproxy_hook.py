# Installed by tproxy; "tproxy uninstall opennebula" removes it.
"""Turns a call of OpenNebula's network drivers to their hooks into calls of ``tproxy hook``.

It runs as oneadmin on hypervisors, with their own python3, 3.8 or newer. So it needs only the standard
library and imports nothing of tproxy. It runs as root only ``sudo -n .../vnm/tproxy``.

The VM comes on stdin as one line of XML in base64. OpenNebula runs a driver for the NICs that have its name
as VN_MAD: before (pre) and after (post) a VM starts, and when the VM is gone (clean). The driver then runs
its hooks. ATTACH=YES marks the one NIC, alias or PCI device that is attached or detached while the VM runs.
"""

from __future__ import annotations

import base64
import binascii
import configparser
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import syslog
from pathlib import Path
from typing import IO, NamedTuple
from xml.etree import ElementTree

# In bytes. A VM with a hundred NICs has 200 KB. OpenNebula's database limits what a user can put into a
# template to a MEDIUMTEXT of 16 MiB, and base64 adds a third.
LIMIT = 24 * 1024 * 1024

DEVICES = ("NIC", "NIC_ALIAS", "PCI")
PHASES = ("pre", "post", "clean")
ON_OPEN_VSWITCH = ("ovswitch", "ovswitch_vxlan")
# These drivers put PHYDEV.VLAN_ID on the bridge, all others PHYDEV itself.
TAGGING = ("802.1Q", "vxlan")

# Links that are uplinks: by IFLA_INFO_KIND, and by DEVTYPE in sysfs those that have no kind. Many networks
# have such a port and no PHYDEV. tproxy/kernel/kinds.py has the same tables, and explains them.
UPLINK_KINDS = frozenset(
    {
        *("vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "macsec", "bond", "team", "hsr", "dsa", "batadv"),
        *("vxlan", "geneve", "gretap", "ip6gretap", "erspan", "ip6erspan", "bareudp", "dummy", "ifb"),
    }
)
GUEST_KINDS = frozenset({"veth", "tun"})
UPLINK_TYPES = frozenset({"l2tpeth", "wlan"})

PORT = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9_.-]{1,15}\Z")
MAC = re.compile(r"([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}\Z")

MARK = b"Installed by tproxy"
STRICT_FAILURE = 75  # EX_TEMPFAIL, sysexits.h(3head); no Python or shell ends with it by accident

IN_USE = 4  # tproxy left the bridge alone on `down`, because other guests use it

SUDO = ("sudo", "-n", "--")


class Problem(Exception):
    """A reason, in one line, why a VM has no services."""


class Settings(NamedTuple):
    """The content of etc/vnm/tproxy.conf in the remotes, which need not exist."""

    strict: bool = False
    config: str = ""


class Nic(NamedTuple):
    """A network device of a VM. A value that OpenNebula did not give is empty."""

    kind: str
    attached: bool
    driver: str
    bridge: str
    bridge_type: str
    network: str
    network_id: str
    phydev: str
    vlan_id: str
    mac: str
    port: str  # of the bridge, on this host

    @property
    def uplink(self) -> str:
        tagged = self.phydev and self.vlan_id and self.driver in TAGGING
        return f"{self.phydev}.{self.vlan_id}" if tagged else self.phydev

    @property
    def on_open_vswitch(self) -> bool:
        return self.driver in ON_OPEN_VSWITCH or self.bridge_type.lower().startswith("openvswitch")


class _Devices:
    """Collects the network devices of a VM from the parser.

    It builds no tree, which would take many times the memory of the text.
    """

    def __init__(self) -> None:
        self._path: list[str] = []
        self.found: list[tuple[str, dict[str, list[str]]]] = []

    def doctype(self, *_: object) -> None:
        # Without a document type there are no entities, by which a small text could become a large one.
        raise Problem("the VM's XML has a document type, which OpenNebula never writes")

    def start(self, tag: str, _: object) -> None:
        self._path.append(tag)
        if len(self._path) == 1 and tag != "VM":
            raise Problem(f"the XML on stdin is not of a VM: it begins with {tag}")
        # There can be several TEMPLATEs. Those further down do not count: HISTORY_RECORDS can hold whole VMs.
        if len(self._path) == 3 and self._path[1] == "TEMPLATE" and tag in DEVICES:
            self.found.append((tag, {}))

    def data(self, text: str) -> None:
        if len(self._path) == 4 and self._path[1] == "TEMPLATE" and self._path[2] in DEVICES:
            # Joined later: the parser calls this for each line, and a value can have any number of lines.
            self.found[-1][1].setdefault(self._path[3], []).append(text)

    def end(self, _: str) -> None:
        self._path.pop()


def read(stream: IO[bytes] | None) -> bytes:
    """Return the bytes of stdin. Raises Problem when there are none, or more than LIMIT."""
    if stream is None:
        raise Problem("no VM on stdin: it is closed")
    data = stream.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise Problem(f"the VM on stdin is larger than {LIMIT} bytes")
    if not data.strip():
        raise Problem("no VM on stdin: it is empty")
    return data


def parse(data: bytes) -> list[Nic]:
    """Return the network devices of the VM that a driver handed over. Raises Problem."""
    try:
        xml = base64.b64decode(b"".join(data.split()), validate=True)
    except binascii.Error as error:
        raise Problem(f"the VM on stdin is not base64: {error}") from None
    devices = _Devices()
    parser = ElementTree.XMLParser(target=devices)
    try:
        parser.feed(xml)
        parser.close()
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # ValueError, LookupError: encodings
        raise Problem(f"the VM on stdin is not XML: {error}") from None
    return [_nic(kind, attributes) for kind, attributes in devices.found]


def _nic(kind: str, attributes: dict[str, list[str]]) -> Nic:
    def value(name: str) -> str:
        return "".join(attributes.get(name, ())).strip()

    return Nic(
        kind,
        value("ATTACH").upper() == "YES",
        value("VN_MAD"),
        value("BRIDGE"),
        value("BRIDGE_TYPE"),
        value("NETWORK"),
        value("NETWORK_ID"),
        value("PHYDEV"),
        value("VLAN_ID"),
        value("MAC"),
        value("TARGET"),
    )


def concerned(nics: list[Nic], driver: str) -> list[Nic]:
    """Return the NICs that a call of this driver is about.

    If a device is marked as attached, the call is about that device alone. An alias is another address on the
    port of its parent, and a passed-through device has no port, so a call about one of these concerns no NIC.
    """
    meant = [nic for nic in nics if nic.attached] or nics
    return [nic for nic in meant if nic.kind == "NIC" and nic.driver == driver and nic.bridge]


def calls(phase: str, nics: list[Nic], config: str = "") -> list[tuple[str, list[str]]]:
    """Return each bridge and the arguments of a call of ``tproxy`` for it.

    There is one call for each network of a bridge: a reservation has the bridge of its parent network. At the
    end of a VM there is one for each bridge.
    """
    made: dict[tuple[str, str, str], list[str]] = {}
    uplinks: dict[str, list[str]] = {nic.bridge: [] for nic in nics}
    for nic in nics:
        # Option and value are one word, because a name may begin with a dash.
        key = (nic.bridge, "", "") if phase == "clean" else (nic.bridge, nic.network, nic.network_id)
        if key not in made:
            made[key] = ["hook", "down" if phase == "clean" else "up", f"--bridge={nic.bridge}"]
            if phase != "clean":
                made[key] += [f"--network={nic.network}", f"--network-id={nic.network_id}"]
            made[key] += [f"--config={config}"] if config else []
        if MAC.match(nic.mac):
            made[key].append(f"--mac={nic.mac}")
            if PORT.match(nic.port):  # it belongs to the MAC before it
                made[key].append(f"--port={nic.port}")
        uplink = f"--uplink={nic.uplink}"
        if nic.uplink and uplink not in uplinks[nic.bridge]:
            uplinks[nic.bridge].append(uplink)
    return [(bridge, [*arguments, *uplinks[bridge]]) for (bridge, _, _), arguments in made.items()]


def wants_own_service(conf: str) -> bool:
    """Return whether OpenNebulaNetwork.conf has a service under ``:tproxy:``.

    python3 on a hypervisor has no YAML parser, so this looks for the key at the left margin, with a value
    that is not empty.
    """
    found = re.search(r"^(['\"]?):?tproxy\1[ \t]*:(?=\s)(.*?)(?=^[^\s#-]|\Z)", conf, re.MULTILINE | re.DOTALL)
    value = re.sub(r"(^|\s)#.*", "", found.group(2)) if found else ""
    return value.strip() not in ("", "[]", "~", "null", "---", "...")


def require_no_own_service(vnm: Path) -> None:
    """Raise Problem if OpenNebula's own implementation manages the same bridges."""
    command = vnm / "tproxy"
    try:
        ours = MARK in command.read_bytes()[:4096]
    except OSError as error:
        raise Problem(f"{command}: {error.strerror}; tproxy install opennebula installs it") from None
    if not ours:
        raise Problem(
            f"{command} is OpenNebula's own: nothing is done; tproxy install opennebula replaces it"
        )
    conf = vnm.parent / "etc/vnm/OpenNebulaNetwork.conf"
    # OpenNebula's drivers serve the bridges if they have this library and a service in this file.
    if not (vnm / "tproxy.rb").exists() or not conf.exists():
        return
    if wants_own_service(conf.read_text(errors="replace")):
        raise Problem(
            f"OpenNebula's own driver serves the bridges, because of :tproxy: in {conf}; nothing is done"
        )


def settings(file: Path) -> Settings:
    """Return the settings of the hooks; the defaults when there is no file. Raises Problem."""
    parser = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=("#",))
    try:
        parser.read(file)
        return Settings(
            parser.getboolean("hooks", "strict", fallback=False),
            parser.get("hooks", "config", fallback=""),
        )
    except (configparser.Error, ValueError) as error:
        raise Problem(f"{file}: {error}") from None


def uplinks(
    bridge: str, links: Path = Path("/sys/class/net"), kinds: dict[str, str] | None = None
) -> list[str]:
    """Return the ports of a bridge that are uplinks by their kind, by the same rules as in tproxy."""
    if "/" in bridge:
        return []
    try:
        ports = sorted(os.listdir(links / bridge / "brif"))
    except OSError:
        return []  # the bridge can be gone already
    found = link_kinds() if kinds is None else kinds
    return [port for port in ports if _leads_off_host(links / port, found.get(port, ""))]


def _leads_off_host(port: Path, kind: str) -> bool:
    if kind in GUEST_KINDS:
        return False
    if kind in UPLINK_KINDS or (port / "device").exists():  # hardware
        return True
    try:
        said = (port / "uevent").read_text().split()
    except OSError:
        return False
    return any(f"DEVTYPE={kind}" in said for kind in UPLINK_TYPES)


def link_kinds() -> dict[str, str]:
    """Return the kind of each link that has one (rtnetlink(7)). Any user may ask for that. Raises OSError."""
    # struct nlmsghdr with RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP; struct ifinfomsg; IFLA_EXT_MASK: no
    # statistics.
    request = struct.pack("=IHHII16xHHI", 40, 18, 0x301, 1, 0, 8, 29, 8)
    kinds: dict[str, str] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.send(request)
        while True:
            data = sock.recv(1 << 16)
            while data:
                length, message = struct.unpack_from("=IH", data)
                if message != 16:  # RTM_NEWLINK; otherwise it is the end
                    return kinds
                found = _attributes(data[32:length])
                kind = _attributes(found.get(18, b"")).get(1)  # IFLA_LINKINFO, IFLA_INFO_KIND
                if kind:
                    name = found.get(3, b"")  # IFLA_IFNAME
                    kinds[os.fsdecode(name.rstrip(b"\0"))] = os.fsdecode(kind.rstrip(b"\0"))
                data = data[(length + 3) & ~3 :]


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)  # struct nlattr
        found[kind & 0x3FFF] = data[4:length]
        data = data[max(4, (length + 3) & ~3) :]
    return found


def carry_out(command: Path, arguments: list[str]) -> None:
    """Call tproxy as root. Raises Problem with the last line that tproxy or sudo printed."""
    words = [*(SUDO if os.geteuid() else ()), os.fspath(command), *arguments]
    # A caller that ignores SIGCHLD passes that on (execve(2)). Then each child would seem to succeed.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        # Encoded in UTF-8, as OpenNebula wrote it, in any locale that ssh passed on.
        done = subprocess.run(
            [word.encode() for word in words],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    except OSError as error:
        raise Problem(f"cannot run {words[0]}: {error.strerror}") from None
    if done.returncode and not (done.returncode == IN_USE and arguments[:2] == ["hook", "down"]):
        lines = done.stderr.decode(errors="replace").splitlines()
        said = next(filter(str.strip, reversed(lines)), f"it ended with {done.returncode}")
        hint = f"; see {command}.sudoers" if said.startswith("sudo:") else ""
        raise Problem(re.sub(r"^tproxy( hook)?: ", "", said) + hint)


def work(hook: Path, given: Settings) -> list[str]:
    """Do what the hook was called for; return a line for each failure. Raises Problem."""
    phase, driver, vnm = hook.parent.name[: -len(".d")], hook.parents[1].name, hook.parents[2]
    if phase not in PHASES:
        raise Problem(f"{hook} is not in a folder pre.d, post.d or clean.d")
    nics = concerned(parse(read(sys.stdin.buffer if sys.stdin else None)), driver)
    linux = [nic for nic in nics if not nic.on_open_vswitch]
    if phase == "pre":
        for bridge in sorted({nic.bridge for nic in nics} - {nic.bridge for nic in linux}):
            # Not a failure: nothing is known yet of services for this network.
            report(f"bridge {bridge} is of Open vSwitch: tproxy serves Linux bridges only")
    if linux:
        require_no_own_service(vnm)
    problems = []
    for bridge, arguments in calls(phase, linux, given.config):
        if phase == "clean":
            # `down` takes each port that is not named for a guest's, and leaves the bridge alone.
            arguments += [f"--uplink={port}" for port in uplinks(bridge)]
        try:
            carry_out(vnm / "tproxy", arguments)
        except Problem as problem:
            problems.append(f"bridge {bridge}: {problem}")
    return problems


def report(line: str, stream: IO[str] | None = None) -> None:
    """Print a line, which OpenNebula copies to the VM's log, and send it to the host's syslog."""
    # The line can hold names from outside, with any characters and of any length.
    printable = "".join(c if c.isprintable() else " " for c in line)
    short = re.sub(r"(\S{80})\S{20,}", r"\1...", " ".join(printable.split()))[:800]
    line = short.encode("ascii", "backslashreplace").decode()
    print(f"tproxy: {line}", file=stream or sys.stdout, flush=True)
    syslog.openlog("one_tproxy", 0, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_ERR, line)


def main(arguments: list[str]) -> int:
    """Run the hook; return the exit code. ``arguments`` are its path and the arguments from OpenNebula."""
    strict = False
    try:
        if not arguments:
            raise Problem("called without the path of a hook")
        hook = Path(arguments[0]).absolute()
        given = settings(hook.parents[2].parent / "etc/vnm/tproxy.conf")
        # A failure of clean must not fail the end of a VM.
        strict = given.strict and hook.parent.name != "clean.d"
        problems = work(hook, given)
    except Problem as problem:
        problems = [str(problem)]
    except Exception as error:
        # The last resort: only a strict hook may fail the start of a VM.
        problems = [f"internal error: {type(error).__name__}: {error}"]
    for problem_line in problems:
        # OpenNebula logs the stdout of a hook that succeeds, and the stderr of one that fails.
        report(problem_line, sys.stderr if strict else sys.stdout)
    return STRICT_FAILURE if problems and strict else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
