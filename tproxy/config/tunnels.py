"""The policy for tunnels that a configuration file gives to a gateway. Pure.

The fields of ``TunnelEntry`` declare the keys of an entry of ``tproxy_tunnels`` (``tproxy.options``). The
gateway judges by them (``inward.tunnel.policy``).
"""

from __future__ import annotations

from tproxy.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # the annotations of options, which are text at run time
    from typing import Annotated

    from tproxy.options import Flag, Option, Words, Written

NAMES = r"[a-z0-9_.\-*?\[\]!]{1,64}"  # a pattern of names of nodes or operators
_PORT = r"(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3})"
OFFER = rf"in|ssh|(?!in:)[a-z][a-z0-9\-]{{0,31}}:{_PORT}"


class TunnelEntry(NamedTuple):
    """One valid entry of ``tproxy_tunnels``."""

    line: int
    nodes: Annotated[
        str,
        Option(
            Written(NAMES, "a name, or a pattern with `*`, `?` and `[...]`"),
            "the nodes that the entry is for",
            required=True,
        ),
    ]
    offer: Annotated[
        tuple[str, ...],
        Option(
            Words(OFFER, "`in`, `ssh`, or a name and a port, such as `api:6443`"),
            "what they may offer: their `in.sock`, their sshd, and ports by name",
            required=True,
        ),
    ]
    operators: Annotated[
        tuple[str, ...],
        Option(
            Words(NAMES, "a name, or a pattern with `*`, `?` and `[...]`"),
            "the operators that may use these offers, of those that may use the nodes",
            unset="all",
        ),
    ] = ("*",)
    routes: Annotated[bool, Option(Flag(), "whether routes may lead to these offers")] = False
