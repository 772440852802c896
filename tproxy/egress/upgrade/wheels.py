"""Upgrades the virtual environment that tproxy runs from, by pip and without a network.

Theory of operation. pip works in a copy of the environment. When all is well there, copy and environment
change places by one call, renameat2(2): a power cut leaves one of them, whole. The copy is kept, and so is
the way back.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

from tproxy.egress.bundle.appliance import WHEEL
from tproxy.egress.bundle.manifest import BundleError
from tproxy.egress.upgrade.staging import Staged
from tproxy.errors import ProcessError, TproxyError

_AT_FDCWD, _EXCHANGE = -100, 2  # fcntl.h, linux/fs.h


def other(prefix: Path) -> Path:
    """Return the directory of the environment that was before the last upgrade."""
    return prefix.with_name(f"{prefix.name}.before")


def changes(staged: Staged, python: str, downgrade: bool = False) -> dict[str, tuple[str, str]]:
    """Return what an upgrade would change: name, version now ("" for none) and version then.

    Raises BundleError when the bundle's wheels are not enough, or older than what runs.
    """
    wanted = staged.tproxy("whl").version
    if Version(wanted) < Version(_installed(WHEEL) or "0") and not downgrade:
        raise BundleError(f"{wanted} is older than {_installed(WHEEL)}, which runs: --downgrade allows that")
    found = {}
    for file in _chosen(staged, python):
        name, version, _, _ = parse_wheel_filename(file)
        if _installed(name) != str(version):
            found[str(name)] = (_installed(name), str(version))
    return found


def install(staged: Staged, prefix: Path) -> None:
    """Upgrade the environment ``prefix``. Raises TproxyError, and then it is as it was."""
    wanted, copy = staged.tproxy("whl").version, other(prefix)
    new = prefix.with_name(f"{prefix.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        _run("cp", "-a", "--reflink=auto", str(prefix), str(new))
        python = str(new / "bin" / "python")
        requirements = staged.folder / "requirements.txt"
        requirements.write_text(_requirements(staged, _chosen(staged, python)))
        _pip(python, staged, "install", "--require-hashes", "--requirement", str(requirements))
        shown = _version(python)
        if wanted not in shown.split():
            raise ProcessError(f"the new tproxy says that it is {shown.strip()!a}, and not {wanted}")
        _move_shebangs(new, prefix)
        os.sync()
        exchange(prefix, new)
        shutil.rmtree(copy, ignore_errors=True)
        os.rename(new, copy)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def back(prefix: Path) -> str:
    """Return to the environment before the last upgrade; that one is kept too. Return its version."""
    if not other(prefix).is_dir():
        raise TproxyError(f"there was no upgrade here: there is no {other(prefix)}")
    exchange(prefix, other(prefix))
    return _version(str(prefix / "bin" / "python")).split()[-1]


def exchange(one: Path, two: Path) -> None:
    """Let two directories change names, at once. Raises ProcessError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(two), _EXCHANGE):
        raise ProcessError(f"{one} and {two} cannot change places: {os.strerror(ctypes.get_errno())}")


def _chosen(staged: Staged, python: str) -> list[str]:
    """Return the wheels that this Python needs, as pip chooses them."""
    folder = staged.folder / "chosen"
    folder.mkdir(exist_ok=True)
    wanted = f"{WHEEL}[egress]=={staged.tproxy('whl').version}"
    _pip(python, staged, "download", "--dest", str(folder), wanted)
    return sorted(path.name for path in folder.iterdir())


def _requirements(staged: Staged, files: list[str]) -> str:
    """Return lines for pip, with the hashes of the signed manifest."""
    hashes = {record.file: record.sha256 for record in staged.of("whl")}
    lines = []
    for file in files:
        name, version, _, _ = parse_wheel_filename(file)
        lines.append(f"{name}=={version} --hash=sha256:{hashes[file]}\n")
    return "".join(lines)


def _pip(python: str, staged: Staged, *words: str) -> None:
    command = [python, "-I", "-m", "pip", "--isolated", "--disable-pip-version-check", "--no-input", words[0]]
    command += ["--quiet", "--no-index", "--no-cache-dir", "--only-binary=:all:"]
    try:
        _run(*command, f"--find-links={staged.folder}", *words[1:])
    except ProcessError as error:
        raise BundleError(f"the wheels of bundle {staged.serial} do not do: {error}") from error


def _move_shebangs(made: Path, prefix: Path) -> None:
    """Let the programs in ``made`` begin with the Python of ``prefix``, where they will be."""
    for path in (made / "bin").iterdir():
        if path.is_symlink() or not path.is_file():
            continue
        content = path.read_bytes()
        if content.startswith(b"#!" + os.fsencode(made) + b"/"):
            mode = path.stat().st_mode
            path.write_bytes(content.replace(os.fsencode(made), os.fsencode(prefix), 1))
            path.chmod(mode)


def _version(python: str) -> str:
    """Return what this environment's tproxy says of itself, wherever this process looks for modules."""
    return _run(python, "-I", "-m", "tproxy", "--version")


def _installed(name: str) -> str:
    try:
        return metadata.version(canonicalize_name(name))
    except metadata.PackageNotFoundError:
        return ""


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR: ")] or lines
        raise ProcessError((errors or [f"{command[0]} ended with {done.returncode}"])[-1])
    return done.stdout
