"""The actions of a plan: values that say what would be done to a bridge. Pure.

``str()`` gives the words for ``--dry-run`` and the log, and ``plumbing.carry_out`` carries an action out. A
hook that finds everything in order has no action, so it does not load this module.
"""

from collections.abc import Iterable, Mapping

from tproxy.addresses import SERVICE_ADDRESS, SERVICE_MAC
from tproxy.names import BridgeNames
from tproxy.typed import NamedTuple


class RemoveName(NamedTuple):
    """Remove the file of a namespace's name, whether or not a namespace is mounted on it."""

    namespace: str

    def __str__(self) -> str:
        return f"remove namespace {self.namespace}"


class CreateNamespace(NamedTuple):
    namespace: str

    def __str__(self) -> str:
        return f"create namespace {self.namespace}"


class DeleteLink(NamedTuple):
    link: str

    def __str__(self) -> str:
        return f"delete link {self.link}"


class DeleteInner(NamedTuple):
    """Delete the namespace's end of a veth pair."""

    names: BridgeNames

    def __str__(self) -> str:
        return f"delete link {self.names.veth_namespace} in namespace {self.names.namespace}"


class CreateVeth(NamedTuple):
    names: BridgeNames
    mtu: int

    def __str__(self) -> str:
        return (
            f"create veth {self.names.veth_bridge} with peer {self.names.veth_namespace} "
            f"in namespace {self.names.namespace}"
        )


class SetSysctls(NamedTuple):
    """Set sysctls in the namespace. ``values`` are by path below net."""

    namespace: str
    values: Mapping[str, str]

    def __str__(self) -> str:
        if len(self.values) > 3:  # usually all, in a new namespace
            return f"set {len(self.values)} sysctls in namespace {self.namespace}"
        values = ", ".join(f"{path}={value}" for path, value in self.values.items())
        return f"set sysctls in namespace {self.namespace}: {values}"


class ConfigureInner(NamedTuple):
    """Give the namespace's end of the veth pair its addresses and route, and set it up."""

    names: BridgeNames
    mtu: int
    mac: str = SERVICE_MAC
    addresses: tuple[str, ...] = (f"{SERVICE_ADDRESS}/32",)

    def __str__(self) -> str:
        addresses = ", ".join(f"address {each}" for each in self.addresses)
        return (
            f"configure {self.names.veth_namespace}: {addresses}, MAC {self.mac}, MTU {self.mtu}, "
            "default route, up"
        )


class RemoveAddresses(NamedTuple):
    """Take service addresses from the namespace's end of the veth pair, then set sysctls.

    The processes have to know of it first: they reset the connections there (``daemon.service_addresses``).
    """

    names: BridgeNames
    addresses: tuple[str, ...]
    sysctls: Mapping[str, str]

    def __str__(self) -> str:
        return f"remove {', '.join(self.addresses)} from {self.names.veth_namespace}"


class AttachOuter(NamedTuple):
    """Attach the bridge's end of the veth pair to the bridge, set it up, and fix the MAC at it."""

    names: BridgeNames
    mtu: int
    mac: str = SERVICE_MAC

    def __str__(self) -> str:
        return f"make {self.names.veth_bridge} a port of {self.names.bridge}: MTU {self.mtu}, up"


class FixForwarding(NamedTuple):
    """Fix our MAC at our port in the bridge's forwarding table, in each VLAN of the port."""

    names: BridgeNames

    def __str__(self) -> str:
        return f"fix MAC {SERVICE_MAC} at port {self.names.veth_bridge} of {self.names.bridge}"


class LoadServiceMap(NamedTuple):
    """Create or change the service map, in one nftables transaction."""

    bridge: str
    commands: tuple[str, ...]

    def __str__(self) -> str:
        return f"load service map of {self.bridge}"


class LoadGuards(NamedTuple):
    """Create or change the guards, in one nftables transaction.

    ``fallbacks`` are for a kernel that refuses ``commands``, best first: what it lacks then, in words, and
    the transaction. There are none when the rules that are loaded already show which kind of kernel this is.
    """

    bridge: str
    commands: tuple[str, ...]
    fallbacks: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __str__(self) -> str:
        return f"load guards of {self.bridge}"


class DeleteMapAndGuards(NamedTuple):
    """Delete the service map and the guards, whichever of them exist, in one nftables transaction."""

    bridge: str
    commands: tuple[str, ...]

    def __str__(self) -> str:
        return f"delete map and guards of {self.bridge}"


Action = (
    RemoveName
    | CreateNamespace
    | DeleteLink
    | DeleteInner
    | CreateVeth
    | SetSysctls
    | ConfigureInner
    | RemoveAddresses
    | AttachOuter
    | FixForwarding
    | LoadServiceMap
    | LoadGuards
    | DeleteMapAndGuards
)

# What takes down a bridge that works, if this process does not see the host's namespaces.
_NEED_HOST_MOUNTS = (RemoveName, CreateNamespace, DeleteLink, DeleteInner, CreateVeth)


def in_two_steps(planned: list[Action]) -> tuple[list[Action], list[Action]]:
    """Return the actions that come before the processes are told, and those that come after that."""
    late: list[Action] = [each for each in planned if isinstance(each, RemoveAddresses)]
    return [each for each in planned if each not in late], late


def need_host_mounts(planned: Iterable[Action]) -> bool:
    """Whether one of the actions creates or removes a namespace or a link."""
    return any(isinstance(each, _NEED_HOST_MOUNTS) for each in planned)
