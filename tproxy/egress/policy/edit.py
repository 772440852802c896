"""Edits egress.yaml for ``tproxy egress allow`` and ``deny``: atomically, and with all comments kept.

The first matching rule decides. So an edit puts the package into a rule of its own network and verdict that
comes before the one that decided until now, or adds such a rule there.
"""

from __future__ import annotations

import fcntl
import io
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError

from tproxy.egress.policy import reader
from tproxy.egress.policy.rules import ANY
from tproxy.errors import ConfigError, TproxyError, quoted

_ONLY = {"networks", "deny", "pypi"}  # keys of rules that an edit may add to


def set_pypi(path: Path, requirement: str, network: str, *, allow: bool) -> bool:
    """Allow or deny a Python project to a network, or to all with ANY. Return False when it was so already.

    Raises ConfigError when the file is broken, and TproxyError for a bad name or a file that cannot be
    written.
    """
    try:
        name = canonicalize_name(Requirement(requirement).name)
    except InvalidRequirement:
        raise TproxyError(
            f"{quoted(requirement)} is not a project, such as requests or 'django>=4'"
        ) from None
    with _locked(path):
        text = _text(path)
        reader.parse(str(path), text)
        for removing in (True, False):
            edited = _dumped(path, text, requirement, name, network, allow=allow, removing=removing)
            if edited is None:
                return False
            # ruamel.yaml keeps a comment with the entry before it, and loses it with that entry. No project's
            # name holds this character, so the number of comments must stay.
            if edited.count("#") == text.count("#"):
                break
        else:
            raise ConfigError(f"{path}: cannot be edited without losing a comment: edit it by hand")
        reader.parse(str(path), edited)  # what we write must be readable
        _replace(path, edited)
        return True


def _dumped(
    path: Path, text: str, requirement: str, name: str, network: str, *, allow: bool, removing: bool
) -> str | None:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096  # do not fold lines that were not folded
    indented = re.search(r"^rules:[^\n]*\n(?:\s*#[^\n]*\n|\s*\n)*( *)-", text, re.MULTILINE)
    offset = len(indented[1]) if indented else 2
    yaml.indent(mapping=2, sequence=2 + offset, offset=offset)
    try:
        root = yaml.load(text)
    except YAMLError as error:  # PyYAML took it: a difference between the two
        raise ConfigError(f"{path}: cannot be edited: {' '.join(str(error).split())}") from None
    if root is None:
        root = CommentedMap()
    if not _edited(root, requirement, name, network, allow=allow, removing=removing):
        return None
    out = io.StringIO()
    yaml.dump(root, out)
    return out.getvalue()


def _edited(root: Any, requirement: str, name: str, network: str, *, allow: bool, removing: bool) -> bool:
    rules = root.setdefault("rules", CommentedSeq())
    if rules is None:
        rules = root["rules"] = CommentedSeq()
    for index, rule in enumerate(rules):
        if not _applies(rule, network) or not (entries := _entries(rule, name)):
            continue
        opposite = bool(rule.get("deny")) == allow
        if not opposite and {ANY, network}.isdisjoint(_networks(rule)):
            continue  # it decides for some networks, as we want it, and for the others nothing
        if not opposite and requirement in entries:
            return False
        if removing and opposite and _is_own(rule, network):
            # Taken back, rather than overridden: the file would grow with each change of mind.
            _remove(rules, index, name)
            _edited(root, requirement, name, network, allow=allow, removing=True)
            return True
        _add(rules, index, requirement, network, allow=allow)
        return True
    _add(rules, len(rules), requirement, network, allow=allow)
    return True


def _applies(rule: Any, network: str) -> bool:
    return not {ANY, network}.isdisjoint(_networks(rule)) or network == ANY


def _networks(rule: Any) -> list[str]:
    found = rule.get("networks")
    return [str(each) for each in (found if isinstance(found, list) else [found])]


def _entries(rule: Any, name: str) -> list[str]:
    """Return what a rule says of a project."""
    found = rule.get("pypi") or []
    found = found if isinstance(found, list) else [found]
    return [str(each) for each in found if "*" in str(each) or _name(str(each)) == name]


def _name(entry: str) -> str:
    return canonicalize_name(Requirement(entry).name) if "*" not in entry.partition("=")[0] else entry


def _is_own(rule: Any, network: str) -> bool:
    return (
        _networks(rule) == [network]
        and rule.keys() <= _ONLY
        and not any("*" in str(each) for each in rule["pypi"])
    )


def _remove(rules: Any, index: int, name: str) -> None:
    rule = rules[index]
    kept = [each for each in rule["pypi"] if _name(str(each)) != name]
    if not kept:
        del rules[index]
        return
    for at in reversed(range(len(rule["pypi"]))):
        if _name(str(rule["pypi"][at])) == name:
            del rule["pypi"][at]


def _add(rules: Any, before: int, requirement: str, network: str, *, allow: bool) -> None:
    """Put the project into a rule that comes before the one that decides now, or is that one."""
    for rule in rules[: before + 1]:
        own = _networks(rule) == [network] and rule.keys() <= _ONLY and isinstance(rule.get("pypi"), list)
        if own and bool(rule.get("deny")) != allow:
            rule["pypi"].append(requirement)
            return
    added = CommentedMap()
    added["networks"] = _flow([network])
    if not allow:
        added["deny"] = True
    added["pypi"] = _flow([requirement])
    rules.insert(before, added)


def _flow(items: list[str]) -> CommentedSeq:
    found = CommentedSeq(items)
    found.fa.set_flow_style()
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return "mode: dmz\n"
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', 'is no UTF-8 text')}") from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let only one edit of the file happen at a time.

    The lock is on the directory, since the file is replaced.
    """
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise TproxyError(f"{path.parent}: {error.strerror}") from None
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _replace(path: Path, text: str) -> None:
    """Write the file so that each reader sees the old or the new one, whatever happens."""
    real = path.resolve()
    try:
        mode, owner = 0o644, None
        with suppress(FileNotFoundError):
            stat = real.stat()
            mode, owner = stat.st_mode & 0o777, (stat.st_uid, stat.st_gid)
        with tempfile.NamedTemporaryFile(
            "w", dir=real.parent, prefix=".egress-", delete=False, encoding="utf-8"
        ) as new:
            try:
                new.write(text)
                new.flush()
                os.fchmod(new.fileno(), mode)
                if owner:
                    os.fchown(new.fileno(), *owner)
                os.fsync(new.fileno())
                os.replace(new.name, real)
            except BaseException:
                with suppress(OSError):
                    os.unlink(new.name)
                raise
        directory = os.open(real.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise TproxyError(f"{path} cannot be written: {error.strerror}") from None
