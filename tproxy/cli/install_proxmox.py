"""install proxmox, uninstall proxmox: tproxy's hookscript among Proxmox VE's snippets."""

from __future__ import annotations

import os

from tproxy.cli.install_commands import Hooks, commands
from tproxy.config import cache, file
from tproxy.errors import ConfigError
from tproxy.platforms import proxmox


def _advice() -> str:
    """Return how to switch a watcher on, unless the configuration file has done that.

    The file is the operator's, and may come from elsewhere by ``tproxy sync``. So this command does not
    change it.
    """
    path = file.SEARCH_PATH[-1]
    try:
        path = file.search(None, os.environ) or path
        if cache.load(path, remember=False).watch:
            return ""
    except ConfigError:
        pass  # it is missing or broken, so no watcher is kept
    return (
        f"add 'tproxy_watch: true' to {path} and run 'tproxy start': a watcher repairs what 'Apply "
        "Configuration' (ifreload -a) breaks"
    )


install, uninstall = commands(
    Hooks(
        platform="proxmox",
        option="--snippets",
        default="/var/lib/vz/snippets",
        option_help="The snippets folder of a storage.",
        pieces=proxmox.pieces,
        places=proxmox.places,
        install_help="Install the hookscript among the snippets; then name it in the guests' configurations."
        "\n\nCan be repeated, with and without --strict.",
        uninstall_help="Remove the hookscript. A guest that still names it does not start: "
        "`qm set VMID --delete hookscript`.",
        install_example="tproxy install proxmox && qm set 100 --hookscript local:snippets/tproxy",
        advice=_advice,
    )
)
