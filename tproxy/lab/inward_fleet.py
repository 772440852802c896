"""The last part of the tour of the way in: one change of a policy reaches two hosts, which send receipts.

The store is a directory that both see. The hosts are the gateway and the site (``inward_site``).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tproxy.addresses import SERVICE_ADDRESS
from tproxy.errors import ProcessError
from tproxy.lab import view
from tproxy.lab.hypervisor import PATIENCE, Hypervisor
from tproxy.lab.view import Run, Shown

ENDPOINT, PORT = "10.11.12.13", 5030
PAGE = "from the policy"

_POLICY = """\
store: file://{folder}/store
key: {folder}/signing.key
groups:
- name: all
  hosts: [{hosts}]
  networks: [blue, green, lan]
  tproxy: [{{service_port: {port}, remote_addr: {address}, remote_port: {port}}}]
"""


def show(hosts: dict[str, Hypervisor], guests: dict[str, tuple[Hypervisor, str]]) -> bool:
    """Apply a policy on these hosts, by name; return whether each of the guests has its service then."""
    with tempfile.TemporaryDirectory(prefix="tproxy-lab-") as name:
        folder = Path(name)
        (folder / "store").mkdir()
        policy = folder / "fleet.yaml"
        text = _POLICY.format(folder=folder, hosts=", ".join(hosts), port=PORT, address=ENDPOINT)
        policy.write_text(text)
        operator = next(iter(hosts.values()))
        for host in hosts.values():
            host.run("mount", "-t", "tmpfs", "tmpfs", "/var/lib")  # shared otherwise
            host.add_endpoint(ENDPOINT, PORT, PAGE)
        well = _run(operator, "init", policy)
        followers = [_follow(host, each, folder) for each, host in hosts.items()]
        well &= _run(operator, "apply", policy) & _run(operator, "status", policy)
        shown = [
            Shown(f"guest {label}, {SERVICE_ADDRESS}:{PORT}", PAGE, _ask(*guest))
            for label, guest in guests.items()
        ]
        for each in followers:
            each.kill()
            each.wait()
        return well & view.scene("Both hosts follow one policy:", shown)


def _run(host: Hypervisor, word: str, policy: Path) -> bool:
    begin = time.monotonic()
    done = host.tproxy("fleet", word, "--policy", str(policy), check=False)
    output = (done.stderr + done.stdout).replace(str(policy.parent), "/etc/tproxy")
    view.run(Run(f"tproxy fleet {word}", output, done.returncode, time.monotonic() - begin))
    return done.returncode == 0


def _follow(host: Hypervisor, name: str, folder: Path) -> subprocess.Popen[str]:
    return host.popen(
        *(sys.executable, "-m", "tproxy", "follow", f"file://{folder}/store", "--host", name),
        *("--config", "/run/tproxy.yaml", "--trusted", f"{folder}/signing.key.pub"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _ask(host: Hypervisor, guest: str) -> str:
    """What a guest gets; a service that is new may take a moment."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return host.get(SERVICE_ADDRESS, PORT, 3, netns=guest)
        except ProcessError as error:
            if time.monotonic() > deadline:
                return str(error)
            time.sleep(0.1)
