"""install libvirt, uninstall libvirt: tproxy's hook in libvirt's folder of hooks."""

from __future__ import annotations

from tproxy.cli.install_commands import Hooks, commands
from tproxy.platforms import libvirt

install, uninstall = commands(
    Hooks(
        platform="libvirt",
        option="--hooks",
        default="/etc/libvirt/hooks",
        option_help="libvirt's folder of hooks.",
        pieces=libvirt.pieces,
        places=libvirt.places,
        install_help="Install the hook that libvirt calls for guests and networks; then restart its daemons."
        "\n\nCan be repeated, with and without --strict.",
        uninstall_help="Remove from libvirt's hooks what `install` put there.",
        install_example="tproxy install libvirt && systemctl restart libvirtd",
    )
)
