"""``tproxy egress up --foreground`` of a node."""

from __future__ import annotations

import subprocess
import sys

from tests.egress.node import Node

TPROXY = (sys.executable, "-m", "tproxy", "egress")


def up(node: Node, before: str = "true") -> subprocess.Popen[str]:
    """Start everything, with the sites' names in /etc/hosts, and wait until all of it listens.

    ``before`` is a shell command that runs first, in the mount namespace of the node.
    """
    command = f"{before} && mount --bind {node.root}/hosts /etc/hosts && exec "
    command += f"{' '.join(TPROXY)} up --foreground --root {node.root}"
    with (node.root / "up.log").open("w") as log:
        child = node.popen("unshare", "--mount", "sh", "-c", command, stdout=log, stderr=log)
    for port in (3128, 443, 3190, 8480):
        node.wait_for(lambda port=port: child.poll() is not None or node.listens(port), f"port {port}")
    assert child.poll() is None, (node.root / "up.log").read_text()
    return child
