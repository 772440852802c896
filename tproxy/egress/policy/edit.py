"""Edits egress.yaml for ``tproxy egress allow`` and ``deny``: atomically, and where the change is only.

The first matching rule decides. So an edit puts the package into a rule of its own network and verdict that
comes before the one that decided until now, or adds such a rule there.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from tproxy.egress.policy import reader, surgery
from tproxy.egress.policy.rules import ANY, Project, Rule
from tproxy.egress.policy.surgery import NotEditable
from tproxy.errors import ConfigError, TproxyError, quoted


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
        text = before = _text(path)
        try:
            while edited := _step(Edit(requirement, name, network, allow), str(path), text):
                text, is_last = edited
                if is_last:
                    break
        except NotEditable as reason:
            raise ConfigError(f"{path}: {reason}") from None
        if text == before:
            return False
        reader.parse(str(path), text)  # what we write must be readable
        _replace(path, text)
        return True


@dataclass(frozen=True)
class Edit:
    """What is to be so: ``requirement`` of project ``name`` is allowed, or denied, to ``network``."""

    requirement: str
    name: str
    network: str
    allow: bool

    def is_said_by(self, rule: Rule) -> bool:
        return rule.deny != self.allow

    def concerns(self, rule: Rule) -> bool:
        """Return whether a rule decides about the project for the network, or for a part of all."""
        if self.network != ANY and {ANY, self.network}.isdisjoint(rule.networks):
            return False
        return any(self.covers(project) for project in rule.pypi)

    def covers(self, project: Project) -> bool:
        return "*" in project.name or project.name == self.name

    def is_the_same_as(self, project: Project) -> bool:
        return project.name == self.name and project.versions == Requirement(self.requirement).specifier

    def owns(self, rule: Rule) -> bool:
        """Return whether a rule is about Python projects of this network, and nothing else."""
        bare = Rule(rule.line, rule.deny, rule.networks, pypi=rule.pypi)
        return rule == bare and rule.networks == {self.network}


def _step(edit: Edit, path: str, text: str) -> tuple[str, bool] | None:
    """Return the text with one change, and whether that was the last one. None when nothing is to do."""
    rules, found = reader.parse(path, text).rules, surgery.Rules(text)
    for index, rule in enumerate(rules):
        if not edit.concerns(rule):
            continue
        if edit.is_said_by(rule):
            if {ANY, edit.network}.isdisjoint(rule.networks):
                continue  # it decides for some networks, as we want it, and for the others nothing
            if any(map(edit.is_the_same_as, rule.pypi)):
                return None
        elif edit.owns(rule) and not any("*" in each.name for each in rule.pypi):
            # Taken back, rather than overridden: the file would grow with each change of mind.
            gone = {at for at, each in enumerate(rule.pypi) if each.name == edit.name}
            if found.places[index].is_list and (without := found.without_projects(index, gone)) is not None:
                return without, False
        return _added(edit, rules, found, index), True
    return _added(edit, rules, found, len(rules)), True


def _added(edit: Edit, rules: Sequence[Rule], found: surgery.Rules, before: int) -> str:
    """Put the project into a rule that comes before the one that decides now, or is that one."""
    project = surgery.written(edit.requirement)
    for index, rule in enumerate(rules[: before + 1]):
        if edit.owns(rule) and edit.is_said_by(rule) and found.places[index].is_list:
            return found.with_project(index, project)
    deny = "" if edit.allow else ", deny: true"
    return found.with_rule(
        before, f"{{networks: [{surgery.written(edit.network)}]{deny}, pypi: [{project}]}}"
    )


def _text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", newline="") as file:  # line ends stay as they are
            return file.read()
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
            "w", dir=real.parent, prefix=".egress-", delete=False, encoding="utf-8", newline=""
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
