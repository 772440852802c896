"""What `tproxy doctor` says of an egress node on this host, as `tproxy egress status` sees it."""

from __future__ import annotations

import os
from pathlib import Path

from tproxy.doctor.finding import Finding, bad, good, warning
from tproxy.egress.layout import Layout

_STATUS = "tproxy egress status"


def findings() -> list[Finding]:
    """Return the check of the egress node; nothing where this host is none."""
    root = os.environ.get("TPROXY_EGRESS_ROOT")
    layout = Layout.below(Path(root)) if root else Layout()
    if not layout.policy.exists():
        return []
    try:
        from tproxy.egress.service import state
    except ImportError as error:
        return [bad("egress", f"a Python package is missing: {error.name}", "pip install one-tproxy[egress]")]
    seen = state.look(layout)
    if not any(seen.parts.values()):
        return [
            warning("egress", f"{layout.policy} is there, and nothing of the egress runs", "tproxy egress up")
        ]
    wrong = state.findings(seen)
    return [bad("egress", each, _STATUS) for each in wrong] or [good("egress", "all parts run")]
