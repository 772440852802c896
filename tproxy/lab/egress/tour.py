"""The tour: two guests with one address and no route install software, each by the policy of its network."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tproxy.errors import ProcessError
from tproxy.lab import view
from tproxy.lab.egress import made, passing
from tproxy.lab.egress.guest import CONFIG, SERVICES, Guest
from tproxy.lab.hypervisor import PATIENCE, Hypervisor
from tproxy.lab.view import Run, Shown

# The address of all sites. It is one of the internet, because the proxy refuses inner ones.
SITES = "93.184.215.14"

POLICY = """\
rules:
  - networks: [build]
    pypi: [demo]
    deb: {suites: [bookworm]}
    oci: ["docker.io/library/*"]
    galaxy: [lab.tools]
  - networks: [office]
    pypi: [other]
    get: ["https://host.example/releases/*"]
"""

# What guest "build" runs, and what is there afterwards.
INSTALLS = (
    ("pip", f"{sys.executable} -m pip install -q --target /tmp/pip demo", "/tmp/pip/demo.py"),
    (
        "apt",
        "apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y demo-of-lab",
        "/usr/share/demo-of-lab/data",
    ),
    ("skopeo", "skopeo copy docker://docker.io/library/demo:1 oci:/tmp/image:1", "/tmp/image/index.json"),
    (
        "ansible-galaxy",
        "ansible-galaxy collection install -p /tmp/collections lab.tools",
        "/tmp/collections/ansible_collections/lab/tools/MANIFEST.json",
    ),
)

_PACKAGES = {
    "apt-get": "apt",
    "curl": "curl",
    "dpkg-deb": "dpkg",
    "gpg": "gpg",
    "minisign": "minisign",
    "openssl": "openssl",
    "skopeo": "skopeo",
    "squid": "squid-openssl",
    "update-ca-certificates": "ca-certificates",
}


def run_tour() -> int:
    """Build the lab, show it, and remove it. Return 0 if all was as expected, else 1."""
    missing = [program for program in _PACKAGES if not shutil.which(program)]
    if missing:
        packages = sorted({_PACKAGES[program] for program in missing})
        raise ProcessError(f"the tour needs {', '.join(missing)}: install {', '.join(packages)}")
    # squid's user reads the policy in the folder, which outlives what runs in the stand-in.
    with passing.folder("tproxy-lab-") as folder, Hypervisor() as host:
        well = _tour(host, folder)
    view.tour_verdict(
        well, "Each network installs what its policy allows, without a route, and nothing else."
    )
    return 0 if well else 1


def _tour(host: Hypervisor, folder: Path) -> bool:
    key = _sites(host, folder)
    _node(host, folder)
    host.write(CONFIG, SERVICES)
    build, office = (Guest(host, folder, f"guest-{each}", each) for each in ("build", "office"))
    for guest in (build, office):
        guest.use_debian("deb [signed-by=/root/debian.asc] http://deb.debian.org/debian bookworm main", key)
        guest.set_up()
    route = build.sh("ip route").stdout.strip()
    view.run(Run("ip route    # guest build; guest office has the same address and routes", route, 0, 0.0))
    well = view.scene("Guest build installs:", [_installed(build, *each) for each in INSTALLS])
    denied = [_denied(office, "pip", INSTALLS[0][1]), _why(office, "https://pypi.org/simple/demo/")]
    allowed = office.sh("curl -sS https://host.example/releases/a").stdout.strip()
    denied.append(Shown("a file of its own rule", "a file", allowed))
    well &= view.scene("Guest office, whose network has another policy:", denied)
    for words in (("log",), ("log", "--denied"), ("log", "--verify"), ("status",)):
        well &= _show(host, folder, *words)
    bill = json.loads(_egress(host, folder, "sbom", "--network", "build").stdout)
    purls = sorted(each.get("purl", "") for each in bill.get("components", []))
    view.run(Run("tproxy egress sbom --network build    # its package URLs", "\n".join(purls), 0, 0.0))
    return well and len(purls) >= len(INSTALLS)


def _sites(host: Hypervisor, folder: Path) -> str:
    """Make the sites and start them. Return the key of Debian's."""
    root = folder / "sites"
    site, _ = made.certificate(folder)
    made.project(root, "demo", "1.0")
    key = made.debian(root, folder / "made", "demo-of-lab")
    made.image(root, "library/demo", "1")
    made.collection(root, folder / "made", "lab", "tools")
    made.put(root, made.PLAIN, "/releases/a", b"a file\n")
    hosts = folder / "hosts"
    hosts.write_text("".join(f"{SITES} {name}\n" for name in made.HOSTS))
    host.run("mount", "--bind", str(hosts), "/etc/hosts")
    host.ip(f"address add {SITES}/32 dev lo")
    host.serve(sys.executable, "-m", "tproxy.lab.egress.sites", SITES, str(root), str(site))
    return key


def _node(host: Hypervisor, folder: Path) -> None:
    """Start the egress, and return when all of it listens."""
    (folder / "etc").mkdir()
    # The sites are on the stand-in itself, so their address has to be named.
    sites = f"upstream_ca: {folder}/sites-ca.pem\ninner: [{SITES}]\n"
    (folder / "etc/egress.yaml").write_text(sites + POLICY)
    log = folder / "up.log"
    with log.open("w") as output:
        words = (sys.executable, "-m", "tproxy", "egress", "up", "--foreground", "--root", str(folder))
        node = host.popen(*words, stdout=output, stderr=output)
    deadline = time.monotonic() + PATIENCE
    while _egress(host, folder, "status").returncode:
        if node.poll() is not None or time.monotonic() > deadline:
            raise ProcessError(f"the egress does not start: {log.read_text()}")
        time.sleep(0.2)


def _egress(host: Hypervisor, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return host.tproxy("egress", *words, "--root", str(folder), check=False)


def _show(host: Hypervisor, folder: Path, *words: str) -> bool:
    begin = time.monotonic()
    done = _egress(host, folder, *words)
    command = f"tproxy egress {' '.join(words)}"
    view.run(Run(command, done.stdout + done.stderr, done.returncode, time.monotonic() - begin))
    return done.returncode == 0


def _installed(guest: Guest, name: str, command: str, file: str) -> Shown:
    done = guest.sh(f"{command} >/tmp/out 2>&1 && test -s {file} && echo installed || tail -n 1 /tmp/out")
    return Shown(name, "installed", done.stdout.strip())


def _denied(guest: Guest, name: str, command: str) -> Shown:
    done = guest.sh(command, check=False)
    return Shown(name, "denied", "denied" if done.returncode else "installed")


def _why(guest: Guest, url: str) -> Shown:
    page = guest.sh(f"curl -sS {url}", check=False).stdout
    reason = page.partition("denied: ")[2].partition("<")[0].strip()
    reason = reason.partition("denied: ")[2] or reason
    return Shown("why", "no rule allows pypi demo to network office", reason)
