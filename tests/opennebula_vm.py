"""A virtual machine as OpenNebula hands it to its network drivers: one line of base64 XML on stdin."""

from __future__ import annotations

import base64


def nic(number: int = 0, *, attach: bool = False, **attributes: str) -> str:
    """Return an element NIC; given attributes replace the usual ones."""
    own = {"MAC": f"02:00:0a:00:00:{5 + number:02x}", "TARGET": f"one-7-{number}"} | _attached(attach)
    return device("NIC", NIC_ID=str(number), **(own | attributes))


def alias(number: int, parent: int, *, attach: bool = False, **attributes: str) -> str:
    """Return an element NIC_ALIAS: another address on the port of NIC ``parent``."""
    more = {"ALIAS_ID": "0", "PARENT": f"NIC{parent}", "PARENT_ID": str(parent)}
    return device("NIC_ALIAS", NIC_ID=str(number), **more, **_attached(attach), **attributes)


def pci(number: int, *, attach: bool = False, **attributes: str) -> str:
    """Return an element PCI: a passed-through network card, which names a network driver too."""
    more = {"PCI_ID": "0", "ADDRESS": "0000:05:10:1", "SHORT_ADDRESS": "05:10.1", "TYPE": "NIC"}
    return device("PCI", NIC_ID=str(number), **more, **_attached(attach), **attributes)


def device(kind: str, **given: str) -> str:
    attributes = {
        "AR_ID": "0",
        "BRIDGE": "onebr0",
        "BRIDGE_TYPE": "linux",
        "CLUSTER_ID": "0",
        "IP": "10.0.0.5",
        "MAC": "02:00:0a:00:00:05",
        "MODEL": "virtio",
        "NAME": f"NIC{given.get('NIC_ID', 0)}",
        "NETWORK": "blue",
        "NETWORK_ID": "0",
        "NETWORK_UNAME": "oneadmin",
        "SECURITY_GROUPS": "0",
        "VN_MAD": "bridge",
    } | given
    # OpenNebula keeps attributes sorted, and every value in a CDATA section.
    return _element(
        kind, "".join(_element(key, f"<![CDATA[{attributes[key]}]]>") for key in sorted(attributes))
    )


def xml(*devices: str, templates: str = "", root: str = "VM") -> str:
    """Return the XML of a VM; ``templates`` are further children of it."""
    rest = "".join(
        _element(name, f"<![CDATA[{value}]]>")
        for name, value in (("CPU", "1"), ("MEMORY", "768"), ("TEMPLATE_ID", "3"), ("VMID", "7"))
    )
    rule = "".join(
        _element(name, f"<![CDATA[{value}]]>")
        for name, value in (("PROTOCOL", "ALL"), ("RULE_TYPE", "outbound"), ("SECURITY_GROUP_ID", "0"))
    )
    template = _element("TEMPLATE", rest + "".join(devices) + _element("SECURITY_GROUP_RULE", rule))
    # A user can write anything here, also a document type.
    user = _element("USER_TEMPLATE", _element("DESCRIPTION", "<![CDATA[<!DOCTYPE html><NIC>]]>"))
    history = _element("HOSTNAME", "node1") + _element("HID", "0") + _element("VM_MAD", "<![CDATA[kvm]]>")
    # A record can hold the VM as it was earlier, with the networks that it had.
    past = _element("VM", _element("TEMPLATE", nic(BRIDGE="of-the-past")))
    records = _element("HISTORY_RECORDS", _element("HISTORY", _element("OID", "7") + history + past))
    head = "<ID>7</ID><UID>0</UID><GID>0</GID><UNAME>oneadmin</UNAME><NAME>guest-7</NAME><STATE>3</STATE>"
    return _element(root, head + template + templates + user + records)


def line(text: str | bytes) -> str:
    """Return the line of base64 that comes on stdin."""
    return base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode() + "\n"


def vm(*devices: str) -> str:
    return line(xml(*devices))


def _element(name: str, inner: str) -> str:
    return f"<{name}>{inner}</{name}>"


def _attached(attach: bool) -> dict[str, str]:
    return {"ATTACH": "YES"} if attach else {}
