"""How an option of the configuration file is declared, and the kinds of values that options have.

An option is declared once: as the annotation of the field that holds its value. The field's default is the
option's default.

    connect_timeout: Annotated[float, Option(Seconds(0.001, 300), "time for ...")] = 5.0

The fields of ``config.services.Config`` are the keys at the top level of the file, those of ``Entry`` and of
``model.Service`` the keys of an entry of ``tproxy``, and those of ``WatchedBridge`` the keys of an entry of
``tproxy_bridges``. From them follow the reader (``config.reader``, ``config.values``), the words in nftables
comments (``bridge.service_map``), the JSON schema (``config.schema``) and the pages (``config.reference``).

Python keeps such an annotation as text, which ``declared`` evaluates. So hooks and relays, which load these
classes, import neither ``typing`` nor this module: only what reads YAML does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, get_type_hints

from tproxy.model import PROTOCOLS


class Port(NamedTuple):
    """A port of TCP or UDP, an int."""

    def __str__(self) -> str:
        return "1 to 65535"


class Number(NamedTuple):
    """A whole number with an optional unit. ``words`` are words that can stand for a number of their own."""

    least: int
    most: int
    unit: str = ""
    words: Mapping[str, int] = {}

    def __str__(self) -> str:
        unit = f"{self.unit}, " if self.unit else ""
        return "".join(f"`{word}`, or " for word in self.words) + f"{unit}{self.least} to {self.most}"


class Seconds(NamedTuple):
    """A time with up to three digits behind the point, a float."""

    least: float
    most: float

    def __str__(self) -> str:
        return f"seconds, {self.least:g} to {self.most:g}"


class Text(NamedTuple):
    """Printable ASCII characters, ``most`` at most."""

    most: int

    def __str__(self) -> str:
        return f"up to {self.most} printable ASCII characters"


class Flag(NamedTuple):
    """A boolean."""

    def __str__(self) -> str:
        return "`true` or `false`"


class Choice(NamedTuple):
    """One of some words or digits, each with the value that it stands for."""

    values: Mapping[str, object]
    shown: str = ""  # how a page lists them, where the words do not explain themselves

    def __str__(self) -> str:
        return self.shown or ", ".join(f"`{each}`" for each in self.values)


class Hosts(NamedTuple):
    """Addresses of endpoints, or their host names: ``most`` at most."""

    most: int

    def __str__(self) -> str:
        return (
            "an IPv4 or IPv6 address, a host name that this hypervisor resolves, `unix:/path` of a UNIX "
            f"socket, or a list of up to {self.most} of these"
        )


class Protocols(NamedTuple):
    """One or several of the protocols of services, a tuple of their names."""

    def __str__(self) -> str:
        return f"{', '.join(f'`{each}`' for each in PROTOCOLS)}, or a list of these"


class ServiceAddress(NamedTuple):
    """An IPv4 address that guests can have services at."""

    def __str__(self) -> str:
        return "an IPv4 address; not below 1.0.0.0, in 127.0.0.0/8, or from 224.0.0.0 on"


class NetworkName(NamedTuple):
    """The name or the id of one network."""

    def __str__(self) -> str:
        return "a name or an id"


class NetworkNames(NamedTuple):
    """Names or ids of networks."""

    def __str__(self) -> str:
        return "a list of names or ids of networks, or one of them"


class BridgePattern(NamedTuple):
    """The name of a bridge, or a pattern."""

    def __str__(self) -> str:
        return "a name, or a pattern with `*`, `?` and `[...]`"


class LinkNames(NamedTuple):
    """Names of network interfaces."""

    def __str__(self) -> str:
        return "a list of ports, or one of them"


class LinkName(NamedTuple):
    """The name of one network interface."""

    def __str__(self) -> str:
        return "the name of a link"


class Written(NamedTuple):
    """Text of a form. ``pattern`` is one of JavaScript too; ``said`` says on a page what it matches."""

    pattern: str
    said: str

    def __str__(self) -> str:
        return self.said


class Words(NamedTuple):
    """Texts of a form, each of them as ``Written``: a tuple."""

    pattern: str
    said: str

    def __str__(self) -> str:
        return f"{self.said}, or a list of these"


class Domains(NamedTuple):
    """Names of hosts in the DNS, a tuple."""

    def __str__(self) -> str:
        return "a list of host names, or one of them"


class Ranges(NamedTuple):
    """Ranges of addresses, a tuple of texts such as 10.1.0.0/16."""

    def __str__(self) -> str:
        return "a list of ranges such as `10.1.0.0/16`, or one of them"


class Moment(NamedTuple):
    """A date, with or without a time, as seconds since 1970, an int."""

    def __str__(self) -> str:
        return "a date, or date and time, such as `2027-01-31` or `2027-01-31T18:00:00Z`; UTC without a zone"


class Entries(NamedTuple):
    """A list of mappings. ``of`` says which keys they have: the key at the top level."""

    of: str

    def __str__(self) -> str:
        return "a list, see below"


Kind = (
    Port
    | Number
    | Seconds
    | Text
    | Flag
    | Choice
    | Hosts
    | Protocols
    | ServiceAddress
    | NetworkName
    | NetworkNames
    | BridgePattern
    | LinkNames
    | LinkName
    | Written
    | Words
    | Domains
    | Ranges
    | Moment
    | Entries
)


class Option(NamedTuple):
    """An option: the kind of its value, and what pages say about it.

    ``key`` is the key in the file where it is not the field's name. ``unset`` says on a page what a missing
    key means, where the default does not. ``nftables`` says on a page where the value is kept on the host; an
    option of ``model.Service`` is a word in its element's comment. An option of a service that is ``general``
    can also stand at the top level, as ``tproxy_KEY``, for all entries without it. At the top level, a value
    that cannot be used means the default; of an option that is ``kept`` the field is None then, and processes
    keep what they have.
    """

    kind: Kind
    help: str
    key: str = ""
    unset: str = ""
    nftables: str = ""
    required: bool = False
    general: bool = False
    kept: bool = False


class Declared(NamedTuple):
    """An option with the names of its key and its field. ``default`` is None where there is none."""

    key: str
    field: str
    option: Option
    default: Any

    def default_as_written(self) -> str:
        """The default as it would be written into the file; "" where there is none to write."""
        return written(self.option.kind, self.default)


def declared(cls: Any, prefix: str = "") -> dict[str, Declared]:
    """Return the options that the fields of a named tuple declare, by key, in the order of the fields.

    ``prefix`` comes before the field's name where the option has no key of its own.
    """
    hints = get_type_hints(cls, localns={**globals(), "Annotated": Annotated}, include_extras=True)
    found = {}
    for field in cls._fields:
        for said in getattr(hints[field], "__metadata__", ()):
            if isinstance(said, Option):
                key = said.key or prefix + field
                found[key] = Declared(key, field, said, cls._field_defaults.get(field))
    return found


def written(kind: Kind, value: Any) -> str:
    """Return a value as it is written into the file; "" for None and whatever is empty."""
    match kind:
        case Choice():
            return next((word for word, each in kind.values.items() if each == value), "")
        case Number():
            words = [word for word, each in kind.words.items() if each == value]
            return words[0] if words else str(value)
        case Seconds():
            return f"{value:g}"
        case Flag():
            return str(value).lower()
        case Protocols():
            return ", ".join(value)
    return str(value) if isinstance(value, str) else ""
