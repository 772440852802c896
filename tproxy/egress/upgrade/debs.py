"""Upgrades tproxy's Debian package, by apt, from files alone.

The files become a repository that only this call of apt knows; no other source is asked. So apt decides what
is needed, and checks each file against the hash of the signed manifest.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tproxy.egress.bundle.appliance import DEB
from tproxy.egress.bundle.manifest import BundleError
from tproxy.egress.upgrade.staging import Staged
from tproxy.errors import ProcessError


def owns(module: str) -> bool:
    """Tell whether a file of tproxy belongs to its Debian package."""
    try:
        done = subprocess.run(["dpkg-query", "--search", module], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0 and done.stdout.startswith(f"{DEB}:")


def changes(staged: Staged, downgrade: bool = False) -> list[str]:
    """Return what apt would do, a line each. Raises BundleError."""
    wanted = _wanted(staged)
    now = _run("dpkg-query", "--show", "--showformat=${Version}", DEB)
    older = subprocess.run(["dpkg", "--compare-versions", wanted, "lt", now], check=False).returncode == 0
    if older and not downgrade:
        raise BundleError(f"{wanted} is older than {now}, which runs: --downgrade allows that")
    return re.findall(r"^(?:Inst|Remv) (.+)$", _apt(staged, "--simulate"), re.MULTILINE)


def install(staged: Staged) -> None:
    """Have apt install tproxy, and what it needs. Raises BundleError."""
    _apt(staged, "--yes")


def _apt(staged: Staged, *options: str) -> str:
    root = staged.folder
    (root / "Packages").write_text(
        "\n".join(_paragraph(root / each.file, each.sha256) for each in staged.of("deb"))
    )
    (root / "sources.list").write_text(f"deb [trusted=yes] file:{root} ./\n")
    for each in ("lists/partial", "cache/archives/partial"):
        (root / each).mkdir(parents=True, exist_ok=True)
    settings = {
        "Dir::Etc::SourceList": f"{root}/sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": f"{root}/lists",
        "Dir::Cache": f"{root}/cache",
        "APT::Sandbox::User": "root",  # the files are root's alone
        "Dpkg::Options::": "--force-confold",  # changed settings of the operator stay
    }
    words = ["apt-get", "--quiet", *(f"-o{name}={value}" for name, value in settings.items())]
    try:
        _run(*words, "update")
        install = ("install", "--no-install-recommends", "--allow-downgrades")
        return _run(*words, *options, *install, f"{DEB}={_wanted(staged)}")
    except ProcessError as error:
        raise BundleError(f"the Debian packages of bundle {staged.serial} do not do: {error}") from error


def _wanted(staged: Staged) -> str:
    """Return the version of tproxy for this machine's architecture."""
    architecture = _run("dpkg", "--print-architecture").strip()
    return staged.tproxy("deb", (f"_{architecture}.deb", "_all.deb")).version


def _paragraph(path: Path, sha256: str) -> str:
    """Return what an index says of a package (deb822(5), Packages)."""
    control = _run("dpkg-deb", "--field", str(path)).rstrip()
    return f"{control}\nFilename: ./{path.name}\nSize: {path.stat().st_size}\nSHA256: {sha256}\n"


def _run(*command: str) -> str:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        unmet = [line for line in lines if "Depends:" in line]
        errors = unmet or [line for line in lines if line.startswith("E: ")] or lines
        raise ProcessError("; ".join(errors) or f"{command[0]} ended with {done.returncode}")
    return done.stdout
