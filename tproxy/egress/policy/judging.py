"""Decides on requests, by the first rule that matches.

What no rule matches, and what cannot be judged, is denied.

Pure: the policy, the caller and the request are values. A request for an official site is judged by what its
URL stands for, which is necessary but not enough: the mirror judges again, when it knows which files the
index of a project lists, which suites list a package, and which blobs an image consists of.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import date, datetime, timezone
from fnmatch import fnmatchcase

from packaging.version import InvalidVersion, Version

from tproxy.egress.model import Artifact, Caller, Verdict
from tproxy.egress.policy import places
from tproxy.egress.policy.rules import ANY, Image, Limits, Policy, Rule

METHODS = ("GET", "HEAD")

# What the verdict names instead of a rule's line, where nothing but ``learn`` allows a request.
LEARNING = "learn"


def request(policy: Policy, caller: Caller, method: str, url: str, today: date | None = None) -> Verdict:
    """Judge a request for a URL. ``today`` is the day for ``learn``; None is the present one, in UTC."""
    if method not in METHODS:
        return Verdict(False, reason=f"method {method} is not allowed: only GET and HEAD are")
    try:
        place = places.parse(url)
    except places.NotClear as reason:
        return Verdict(False, reason=f"the URL {reason}")
    found = tuple(places.artifacts(place, policy.upstreams))

    def meant(rule: Rule) -> bool:
        return (
            any(_is_meant(rule, each) for each in found)
            or any(places.matches(pattern, place) for pattern in rule.get)
            or any(places.matches(file.url, place) for file in rule.files)
        )

    what = next((f"{each.kind} {each.name} {each.version}".rstrip() for each in found), place.address)
    usual = place.port == places.PORTS[place.scheme]
    return _first(policy, caller, meant, what, may_learn=usual, today=today)


def destination(policy: Policy, caller: Caller, host: str, port: int) -> Verdict:
    """Judge a CONNECT by its destination: whether any request there can be allowed. A tunnel is opaque."""
    host = host.lower().rstrip(".")
    for name, networks in policy.tunnel:
        if name == host and port == 443 and _tunnel_is_for(networks, caller):
            if policy.mode == "sealed":
                return Verdict(False, reason="this site is sealed: nothing leaves it")
            return Verdict(True, "tunnel", f"tunnel to {host}", opaque=True)

    def meant(rule: Rule) -> bool:
        return any(
            scheme == "https" and port == at and places.host_matches(name, host)
            for scheme, name, at in _sites(rule, policy)
        )

    usual = port == places.PORTS["https"]
    return _first(policy, caller, meant, f"host {host}:{port}", skip_denying=True, may_learn=usual)


def artifact(
    policy: Policy, caller: Caller, wanted: Artifact, suites: Collection[str] | None = None
) -> Verdict:
    """Judge a thing that the mirror knows.

    ``suites`` are those that list a package; None where it is unknown.
    """

    def meant(rule: Rule) -> bool:
        return _is_meant(rule, wanted, suites)

    return _first(
        policy, caller, meant, f"{wanted.kind} {wanted.name or wanted.url} {wanted.version}".rstrip()
    )


def limits(policy: Policy, caller: Caller) -> Limits:
    """Return what a caller may use: each limit of the first of its rules that has it, or the general one."""
    found = [rule.limits for rule in policy.rules if rule.limits and rule.is_for(caller)]
    found.append(policy.limits)
    return Limits(
        connections=next((each.connections for each in found if each.connections), 0),
        bytes_per_second=next((each.bytes_per_second for each in found if each.bytes_per_second), 0),
    )


def hosts(policy: Policy) -> frozenset[str]:
    """Return the names of all hosts that any caller may reach; a pattern keeps its "*."."""
    found = {host for rule in policy.rules if not rule.deny for _, host, _ in _sites(rule, policy)}
    return frozenset(found | {host for host, _ in policy.tunnel})


def _tunnel_is_for(networks: frozenset[str], caller: Caller) -> bool:
    return Rule(0, networks=networks).is_for(caller)


def _first(
    policy: Policy,
    caller: Caller,
    meant: Callable[[Rule], bool],
    what: str,
    *,
    skip_denying: bool = False,
    may_learn: bool = True,
    today: date | None = None,
) -> Verdict:
    who = (
        f"network {caller.network or caller.network_id}"
        if caller.network or caller.network_id
        else "nobody known"
    )
    for rule in policy.rules:
        if rule.deny and skip_denying:
            continue
        if rule.is_for(caller) and meant(rule):
            name = f"egress.yaml:{rule.line}"
            if rule.deny:
                return Verdict(False, name, f"{what} is denied to {who} by line {rule.line}")
            return Verdict(True, name, f"{what} is allowed to {who} by line {rule.line}")
    if may_learn and learning(policy, caller, today or datetime.now(timezone.utc).date()):
        return Verdict(True, LEARNING, f"{what} is allowed to {who} while it learns")
    return Verdict(False, reason=f"no rule allows {what} to {who}")


def learning(policy: Policy, caller: Caller, today: date) -> bool:
    """Return whether this caller may fetch what no rule denies. A sealed site does not learn."""
    return policy.learn is not None and policy.mode != "sealed" and policy.learn.is_for(caller, today)


def _is_meant(rule: Rule, wanted: Artifact, suites: Collection[str] | None = None) -> bool:
    match wanted.kind:
        case "pypi":
            return _pypi(rule, wanted)
        case "deb":
            return _deb(rule, wanted, suites)
        case "oci":
            return any(_image(each, wanted, rule.deny) for each in rule.oci)
        case "galaxy":
            if not wanted.name:  # the root of the API, which names no collection
                return bool(rule.galaxy) and not rule.deny
            return any(fnmatchcase(wanted.name, pattern) for pattern in rule.galaxy)
        case "file":
            return any(
                each.url == wanted.url and (not wanted.sha256 or each.sha256 == wanted.sha256)
                for each in rule.files
            )
        case "uri":
            try:
                place = places.parse(wanted.url)
            except places.NotClear:
                return False
            return any(places.matches(pattern, place) for pattern in rule.get)


def _pypi(rule: Rule, wanted: Artifact) -> bool:
    for project in rule.pypi:
        if not fnmatchcase(wanted.name, project.name):
            continue
        if not project.versions:
            return True
        if not wanted.version:  # an index lists all versions; denying some does not deny the index
            if not rule.deny:
                return True
            continue
        try:
            if project.versions.contains(Version(wanted.version), prereleases=True):
                return True
        except InvalidVersion:
            if rule.deny:
                return True
    return False


def _deb(rule: Rule, wanted: Artifact, suites: Collection[str] | None) -> bool:
    if rule.deb is None:
        return False
    if not wanted.name:  # an index, whose version is its suite; a packages' list does not deny the index
        if rule.deny and rule.deb.packages:
            return False
        return ANY in rule.deb.names or wanted.version in rule.deb.names
    if rule.deb.packages and not any(fnmatchcase(wanted.name, each) for each in rule.deb.packages):
        return False
    return suites is None or ANY in rule.deb.names or not rule.deb.names.isdisjoint(suites)


def _image(image: Image, wanted: Artifact, deny: bool) -> bool:
    if wanted.name.endswith("/"):  # the registry itself: "is this a registry?"
        return not deny and image.repository.startswith(wanted.name)
    if not _path_matches(image.repository, wanted.name):
        return False
    if not image.digest:
        return True
    if wanted.filename in ("tags", "referrers"):
        return False
    if wanted.filename == "manifests":
        return wanted.sha256 == image.digest.removeprefix("sha256:")
    return not deny  # a blob or a token: the mirror knows which blobs belong to a pinned image


def _path_matches(pattern: str, name: str) -> bool:
    parts, wanted = pattern.split("/"), name.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, wanted, parts))


def _sites(rule: Rule, policy: Policy) -> frozenset[tuple[str, str, int]]:
    """Return scheme, host and port of all sites that have something that this rule is about."""
    up, urls = policy.upstreams, [*rule.get, *(each.url for each in rule.files)]
    if rule.pypi:
        urls += up.pypi_index, *up.pypi_files
    if rule.deb:
        urls += *up.deb, *(each.replace("http:", "https:", 1) for each in up.deb)
    if rule.galaxy:
        urls.append(up.galaxy)
    for image in rule.oci:
        registry = image.repository.partition("/")[0]
        urls.append(f"https://{registry}/")
        if registry in up.oci:
            urls.append(up.oci[registry])
        if registry == "docker.io":
            urls += (f"https://{each}/" for each in places.HUB)
    return frozenset(map(_site, urls))


def _site(url: str) -> tuple[str, str, int]:
    scheme, _, rest = url.partition("://")
    host, _, port = rest.partition("/")[0].lower().partition(":")
    return scheme, host, int(port or places.PORTS[scheme])
