"""Names of domains: their one written form, and how two of them relate. Pure.

A name is in lower case, without a final dot, and in ASCII (IDNA 2008 with the mapping of UTS 46, as browsers
do it). ``*.`` at its beginning stands for all names below.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from contextlib import suppress

from tproxy.errors import BadName, quoted, to_ascii

MOST = 253  # characters of a name, RFC 1035 section 3.1 without the root
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_ANY = "*."

# Letters that look like one of ASCII in most fonts: those of Cyrillic and Greek.
_LOOKS_LIKE = str.maketrans(
    "\u0430\u0441\u0435\u043e\u0440\u0445\u0443\u0456\u0458\u0455\u04bb\u0501\u051b\u051d\u0432\u043c\u043d\u043a\u0442\u03bf\u03b1\u03c1\u03bd\u03b9\u0131",
    "aceopxyijshdqwbmhktoapvii",
)

_CONFUSED = {"LATIN", "CYRILLIC", "GREEK"}


def normalised(text: str, *, wildcard: bool = False) -> str:
    """Return the one form of a name. Raises BadName. ``wildcard`` allows ``*.`` at its beginning."""
    name = text.strip().lower().removesuffix(".")
    prefix = _ANY if wildcard and name.startswith(_ANY) else ""
    name = name.removeprefix(prefix)
    if not name.isascii():
        name = _in_ascii(name)
    if not name or len(prefix + name) > MOST:
        raise BadName(f"{quoted(text)} is {'longer than 253 characters' if name else 'empty'}")
    for label in name.split("."):
        if not _LABEL.fullmatch(label):
            raise BadName(f"{quoted(text)} is no domain name: its part {quoted(label)} cannot be")
    if name.rpartition(".")[2].isdecimal():
        raise BadName(f"{quoted(text)} is no domain name: it ends with a number, as an address does")
    return prefix + name


def _in_ascii(name: str) -> str:
    try:
        import idna
    except ImportError:
        raise BadName(
            f"{quoted(name)} is not ASCII, and the package idna is missing: pip install 'one-tproxy[inward]'"
        ) from None
    try:
        return idna.encode(name, uts46=True, transitional=False).decode().lower()
    except idna.IDNAError as error:
        raise BadName(f"{quoted(name)} is no domain name: {to_ascii(error)}") from None


def is_wildcard(name: str) -> bool:
    """Whether the name stands for all names below it."""
    return name.startswith(_ANY)


def base(name: str) -> str:
    """Return the name without ``*.``."""
    return name.removeprefix(_ANY)


def within(name: str, domain: str) -> bool:
    """Whether a name is the domain itself or below it. A wildcard is where its base is."""
    return f".{base(name)}".endswith(f".{domain}")


def overlap(first: str, second: str) -> bool:
    """Whether a client's question can be for both: equal names, or a name that a wildcard covers."""
    for one, other in ((first, second), (second, first)):
        if is_wildcard(one) and base(other).endswith(one[1:]):
            return True
    return first == second


def parents(name: str) -> Iterable[str]:
    """Yield the domains above a name, the closest one first."""
    while "." in name:
        name = name.partition(".")[2]
        yield name


def looks(name: str) -> str:
    """Return what a reader may take the name for: letters of other scripts as the Latin ones."""
    shown = unicodedata.normalize("NFKD", _in_unicode(name).translate(_LOOKS_LIKE))
    return "".join(each for each in shown if not unicodedata.combining(each)).translate(_LOOKS_LIKE)


def homograph(name: str, others: Iterable[str]) -> str:
    """Return what to tell of a name that may be read as another one; "" for nothing. Nothing is refused."""
    if "xn--" not in name:
        return ""
    like = looks(name)
    if twin := next((each for each in others if each != name and looks(each) == like), ""):
        return f"{name} looks like {twin}"
    for label in _in_unicode(base(name)).split("."):
        scripts = {_script(each) for each in label if each.isalpha()} & _CONFUSED
        if len(scripts) > 1 or (scripts and scripts != {"LATIN"} and looks(label).isascii()):
            return (
                f"{name} has letters that are {' and '.join(sorted(scripts))}: it looks like {to_ascii(like)}"
            )
    return ""


def _script(letter: str) -> str:
    return unicodedata.name(letter, "?").partition(" ")[0]


def _in_unicode(name: str) -> str:
    return ".".join(map(_label_in_unicode, name.split(".")))


def _label_in_unicode(label: str) -> str:
    if label.startswith("xn--"):
        with suppress(UnicodeError):
            return label[4:].encode().decode("punycode")
    return label
