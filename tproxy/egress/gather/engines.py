"""Runs the clients that resolve dependencies: pip, apt-get and ansible-galaxy; walks images itself.

Each function fetches through a mirror at ``url`` and returns what is missing, a line for each. What a client
downloads is thrown away: the mirror has kept it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tproxy.egress.gather.lists import Item, Targets
from tproxy.egress.mirror.oci import MANIFESTS

CHUNK = 1 << 20


def pypi(url: str, items: Sequence[Item], targets: Targets) -> list[str]:
    """Download wheels with pip for each version of Python, with all that they require."""
    missing, index = [], ["--index-url", f"{url}pypi/simple/"]
    for python in targets.pythons:
        everything = [item.name for item in items]
        if not _pip(index, everything, python, targets.platforms):
            continue
        # pip stops at the first failure; to name all, each is tried alone.
        alone = {name: _pip(index, [name], python, targets.platforms) for name in everything}
        found = [f"pypi {name} for Python {python}: {why}" for name, why in alone.items() if why]
        together = _pip(index, everything, python, targets.platforms)
        missing += found or [f"pypi for Python {python}, all together: {together}"]
    return missing


def wheels(folder: Path, name: str, targets: Targets) -> list[str]:
    """Return what the wheels in a folder lack to install this one, for each version of Python."""
    source = ["--no-index", f"--find-links={folder}"]
    why = {python: _pip(source, [name], python, targets.platforms) for python in targets.pythons}
    return [f"{name} for Python {python}: {text}" for python, text in why.items() if text]


def platform_tags(platform: str) -> list[str]:
    """Return the tags of wheels that a platform can use, the best first.

    A C library can do what older ones can, down to 2.5 (PEP 600). pip knows that of its own platform only.
    """
    found = re.fullmatch(r"manylinux(?:_2_(\d+)|2014)_(\w+)", platform)
    if found is None:
        return [platform]
    newest, machine = int(found[1] or 17), found[2]
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, 4, -1)]
    # Each of these names stands for one version, and pip adds those of older ones.
    return [*tags, *([f"manylinux2014_{machine}"] if newest >= 17 else []), f"linux_{machine}"]


def _pip(source: Sequence[str], names: Sequence[str], python: str, platforms: Iterable[str]) -> str:
    """Return why pip fails; "" if it does not."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-cache-dir", "--dest", folder]
        command += ["--disable-pip-version-check", "--no-input", "--only-binary=:all:"]
        command += [*source, "--python-version", python]
        command += [f"--platform={tag}" for platform in platforms for tag in platform_tags(platform)]
        code, out = _run([*command, "--", *names], folder, {"PIP_CONFIG_FILE": os.devnull})
    return "" if code == 0 else _reason(out, "ERROR: ")


def deb(
    url: str, items: Sequence[Item], targets: Targets, repositories: Iterable[str], keyring: str
) -> list[str]:
    """Download packages with apt for each architecture, with all that they depend on, over all suites."""
    missing = []
    for architecture in targets.architectures:
        with tempfile.TemporaryDirectory() as folder:
            sources = _sources(url, targets, repositories, keyring)
            config = _apt_root(Path(folder), sources, architecture)
            code, out = _run(["apt-get", "update", "--error-on=any"], folder, {"APT_CONFIG": str(config)})
            if code:
                missing.append(f"deb indexes for {architecture}: {_reason(out, 'E: ')}")
                continue
            install = ["apt-get", "install", "--download-only", "--no-install-recommends", "--"]
            names = [item.name for item in items]
            code, out = _run([*install, *names], folder, {"APT_CONFIG": str(config)})
            if not code:
                continue
            for name in names:
                code, alone = _run([*install, name], folder, {"APT_CONFIG": str(config)})
                if code:
                    missing.append(f"deb {name} for {architecture}: {_apt_reason(alone)}")
            if not any(line.startswith("deb ") for line in missing):
                missing.append(f"deb for {architecture}, all together: {_apt_reason(out)}")
    return missing


def _sources(url: str, targets: Targets, repositories: Iterable[str], keyring: str) -> str:
    """Return the lines of sources.list: each suite at the repositories that have it.

    Suites named "-security" are in repositories of that name, as at Debian.
    """
    lines = []
    for suite in targets.suites:
        for repository in repositories:
            if suite.endswith("-security") == repository.endswith("-security"):
                components = " ".join(targets.components)
                lines.append(f"deb [signed-by={keyring}] {url}deb/{repository} {suite} {components}")
    return "\n".join(lines) + "\n"


def _apt_root(root: Path, sources: str, architecture: str) -> Path:
    """Make a root directory for apt in which nothing is installed, and return its configuration."""
    for each in ("etc/apt.conf.d", "etc/preferences.d", "state/lists/partial", "cache/archives/partial"):
        (root / each).mkdir(parents=True)
    (root / "etc/sources.list").write_text(sources)
    (root / "state/status").touch()
    config = root / "etc/apt.conf"
    config.write_text(
        f'Dir "{root}";\nDir::Etc "{root}/etc";\nDir::State "{root}/state";\nDir::Cache "{root}/cache";\n'
        f'Dir::State::status "{root}/state/status";\nAPT::Architecture "{architecture}";\n'
        f'APT::Architectures {{ "{architecture}"; }};\nAPT::Sandbox::User "root";\n'
        'Acquire::Languages "none";\nAPT::Get::Assume-Yes "true";\n'
    )
    return config


def galaxy(url: str, items: Sequence[Item]) -> list[str]:
    """Download collections with ansible-galaxy, with all that they depend on."""
    program = shutil.which(
        "ansible-galaxy", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    )
    if program is None:
        return ["galaxy: ansible-galaxy is not installed here: pip install ansible-core"]
    missing = []
    with tempfile.TemporaryDirectory() as folder:
        for item in items:
            command = [
                program,
                "collection",
                "download",
                "-s",
                f"{url}galaxy/",
                "-p",
                f"{folder}/collections",
            ]
            code, out = _run([*command, item.name], folder, {"ANSIBLE_HOME": f"{folder}/home"})
            if code:
                missing.append(f"galaxy {item.name}: {_reason(out, 'ERROR! ')}")
    return missing


def roles(url: str, items: Sequence[Item]) -> list[str]:
    """Fetch roles, each in the version that its line names, or else in all versions."""
    missing = []
    for item in items:
        role, _, version = item.name.partition(":")
        owner, _, name = role.partition(".")
        try:
            query = urlencode({"owner__username": owner, "name": name})
            entry = json.loads(_get(f"{url}galaxy/api/v1/roles/?{query}"))["results"][0]
            listed = json.loads(_get(f"{url}galaxy/api/v1/roles/{entry['id']}/versions/"))["results"]
            wanted = [each["download_url"] for each in listed if version in ("", each["name"])]
            if not wanted:
                missing.append(f"role {item.name}: there is no such version")
            for address in wanted:
                _get(address)
        except (OSError, ValueError, LookupError) as error:
            missing.append(f"role {item.name}: {_words(error)}")
    return missing


def oci(url: str, items: Sequence[Item], targets: Targets) -> list[str]:
    """Fetch images for the chosen platforms: index, manifests, configurations and layers."""
    missing = []
    for item in items:
        try:
            missing += [f"oci {item.name}: {why}" for why in _image(url, item.name, targets.images)]
        except (OSError, ValueError, LookupError) as error:
            missing.append(f"oci {item.name}: {_words(error)}")
    return missing


def _image(url: str, name: str, platforms: Sequence[str]) -> list[str]:
    image, _, digest = name.partition("@")
    tag = re.search(r":([\w][\w.-]*)$", image)
    if tag and not digest:
        image = image[: tag.start()]
    base = f"{url}v2/{image}/"
    top = _manifest(base, digest or (tag[1] if tag else "latest"))
    if "manifests" not in top:
        _parts(base, top)
        return []
    found = set()
    for entry in top["manifests"]:
        platform = entry.get("platform", {})
        names = {f"{platform.get('os')}/{platform.get('architecture')}"}
        names.add(f"{names.copy().pop()}/{platform.get('variant')}")
        if names & set(platforms):
            found |= names
            _parts(base, _manifest(base, entry["digest"]))
    return [f"there is none for {platform}" for platform in platforms if platform not in found]


def _manifest(base: str, reference: str) -> Any:
    return json.loads(_get(f"{base}manifests/{reference}", {"Accept": ", ".join(MANIFESTS)}))


def _parts(base: str, manifest: Mapping[str, Any]) -> None:
    for part in [manifest["config"], *manifest["layers"]]:
        _get(f"{base}blobs/{part['digest']}", keep=False)


def files(url: str, items: Sequence[Item]) -> list[str]:
    """Fetch plain files."""
    missing = []
    for item in items:
        address = item.name.partition(" ")[0]
        try:
            _get(f"{url}files/{address.replace('://', '/', 1)}", keep=False)
        except OSError as error:
            missing.append(f"file {address}: {_words(error)}")
    return missing


def _get(url: str, headers: Mapping[str, str] | None = None, keep: bool = True) -> bytes:
    """Fetch to the end; large things are not kept in memory."""
    # A proxy of this host's environment must not be asked for a private port.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, headers=dict(headers or {}))) as answer:
        if keep:
            return bytes(answer.read())
        expected, size = int(answer.headers.get("Content-Length", "-1")), 0
        while data := answer.read(CHUNK):
            size += len(data)
        if expected not in (-1, size):
            raise OSError(f"only {size} of {expected} bytes arrived")
        return b""


def _run(command: Sequence[str], folder: str, more: Mapping[str, str]) -> tuple[int, str]:
    """Run a client with an empty home, and without this host's proxies and settings of pip."""
    path = f"{os.environ.get('PATH', '/usr/bin')}:/usr/sbin:/sbin"
    environment = {"PATH": path, "HOME": folder, "LC_ALL": "C.UTF-8", **more}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, cwd=folder
        )
    except FileNotFoundError:
        return 127, f"{command[0]} is not installed here"
    return done.returncode, done.stdout + done.stderr


def _reason(out: str, mark: str) -> str:
    """Return the line of a client's output that says most."""
    lines = [line for line in out.splitlines() if line.strip()]
    marked = [line.removeprefix(mark).strip() for line in lines if line.startswith(mark)]
    return (marked or lines or ["failed without a word"])[-1]


def _apt_reason(out: str) -> str:
    """Return what apt lists as unmet, or its error."""
    unmet = re.findall(r"Depends: (.+?)(?: but .*)?$", out, re.MULTILINE)
    return f"needs {', '.join(sorted(set(unmet)))}" if unmet else _reason(out, "E: ")


def _words(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        with error:
            return f"{error.code} {error.read(300).decode(errors='replace').strip()}"
    return str(error) or type(error).__name__
