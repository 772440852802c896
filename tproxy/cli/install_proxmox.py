"""install proxmox, uninstall proxmox: tproxy's hookscript among Proxmox VE's snippets."""

from __future__ import annotations

from tproxy.cli.install_commands import Hooks, commands
from tproxy.platforms import proxmox

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
    )
)
