"""An /etc of a stand-in's own: its files decide how the stand-in resolves names."""

from __future__ import annotations

import shutil
from pathlib import Path

from tproxy.lab.hypervisor import Hypervisor

DIRECTORY = "/run/etc"


def private_etc(host: Hypervisor, **files: str) -> None:
    """Give the stand-in an /etc with the given files and those that programs need.

    In a file's name ``_`` stands for a dot: ``resolv_conf="nameserver ..."``. There is one mount for all
    files, because resolv.conf can be a link to nowhere, over which older versions of mount do not mount.
    """
    for name, content in files.items():
        host.write(f"{DIRECTORY}/{name.replace('_', '.')}", content)
    for name in ("passwd", "group", "ld.so.cache"):
        shutil.copy(Path("/etc") / name, host.path(DIRECTORY) / name)
    host.run("mount", "--bind", DIRECTORY, "/etc")
