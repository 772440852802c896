"""tproxy offers chosen services to guests of isolated networks, without routing one packet.

These nouns have one meaning everywhere:

guest
    a virtual machine or container attached to a bridge on this hypervisor.
network
    a virtual network; it has a name and an id, and one bridge on each hypervisor.
service address
    169.254.16.9, the same on every network and every hypervisor.
service port
    the TCP port on the service address that guests connect to.
endpoint
    the real ``remote_addr:remote_port`` behind a service port.
service
    one service port with its endpoint and options, on one bridge.
relay
    the process in a bridge's network namespace; it accepts connections and passes the sockets to the daemon.
daemon
    the one process in the root namespace; it dials endpoints and moves the bytes.
hook
    the command that a VM network driver calls when a NIC comes or goes.
guard
    the nftables rules at a bridge that let nobody but us use the service address and our MAC there.
"""

__version__ = "0.1.0"
