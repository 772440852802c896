"""An /etc of a stand-in's own, for what decides how names are resolved."""

from __future__ import annotations

import shutil
from pathlib import Path

from tproxy.lab.hypervisor import Hypervisor

DIRECTORY = "/run/etc"


def private_etc(host: Hypervisor, **files: str) -> None:
    """Give the stand-in an /etc with ``hosts`` and such, and with what programs need there.

    Not a mount for each file: resolv.conf can be a link to nowhere, which older versions of mount refuse.
    """
    for name, content in files.items():
        host.write(f"{DIRECTORY}/{name.replace('_', '.')}", content)
    for name in ("passwd", "group", "ld.so.cache"):
        shutil.copy(Path("/etc") / name, host.path(DIRECTORY) / name)
    host.run("mount", "--bind", DIRECTORY, "/etc")
