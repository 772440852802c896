"""Package URLs of artifacts, and artifacts of package URLs (github.com/package-url/purl-spec).

Ansible's collections and roles have no type of their own there, so they are generic, with a qualifier. Both
are of the kind "galaxy"; a role is known by its file, which has no name but its version.
"""

from __future__ import annotations

from dataclasses import replace

from packageurl import PackageURL

from tproxy.egress.model import Artifact


def role(name: str, version: str = "") -> Artifact:
    """Return the artifact that a role of Ansible is."""
    return Artifact("galaxy", name, version, f"{version}.tar.gz")


def is_role(artifact: Artifact) -> bool:
    return artifact.kind == "galaxy" and artifact.filename == f"{artifact.version}.tar.gz"


def purl_of(artifact: Artifact) -> str:
    """Return the package URL; "" for what is no package, such as an index."""
    if artifact.purl:
        return artifact.purl
    name, version = artifact.name, artifact.version or None
    if artifact.kind == "pypi" and name and artifact.filename:
        return PackageURL("pypi", None, name, version, {"file_name": artifact.filename}).to_string()
    if artifact.kind == "deb" and name:
        arch = artifact.filename.removesuffix(".deb").rpartition("_")[2]
        qualifiers = {"arch": arch} if artifact.filename.endswith(".deb") else None
        return PackageURL("deb", "debian", name, version, qualifiers).to_string()
    if artifact.kind == "oci" and name:
        digest = f"sha256:{artifact.sha256}" if artifact.sha256 else None
        qualifiers = {"repository_url": name}
        if version and not version.startswith("sha256:"):
            qualifiers["tag"] = version
        return PackageURL("oci", None, name.rpartition("/")[2], digest, qualifiers).to_string()
    if artifact.kind == "galaxy" and name:
        ansible = "role" if is_role(artifact) else "galaxy"
        return PackageURL("generic", None, name, version, {"ansible": ansible}).to_string()
    if artifact.kind in ("file", "uri") and artifact.url:
        qualifiers = {"download_url": artifact.url}
        if artifact.sha256:
            qualifiers["checksum"] = f"sha256:{artifact.sha256}"
        last = artifact.url.rstrip("/").rpartition("/")[2] or "file"
        return PackageURL("generic", None, last, version, qualifiers).to_string()
    return ""


def artifact_of(text: str) -> Artifact | None:
    """Return what a package URL names; None where this program has no such kind, and for a file of no hash.

    Raises ValueError.
    """
    purl = PackageURL.from_string(text)
    qualifiers = dict(purl.qualifiers) if isinstance(purl.qualifiers, dict) else {}
    name, version = purl.name, purl.version or ""
    if purl.type in ("pypi", "deb"):
        filename = qualifiers.get("file_name", "")
        if purl.type == "deb" and "arch" in qualifiers:
            filename = f"{name}_{version.partition(':')[2] or version}_{qualifiers['arch']}.deb"
        return Artifact("pypi" if purl.type == "pypi" else "deb", name, version, filename, purl=text)
    if purl.type == "oci":
        repository = qualifiers.get("repository_url", name)
        tag = qualifiers.get("tag", "")
        return Artifact("oci", repository, tag or version, sha256=version.removeprefix("sha256:"), purl=text)
    if qualifiers.get("ansible") == "role":
        return replace(role(name, version), purl=text)
    if "ansible" in qualifiers:
        return Artifact("galaxy", name, version, purl=text)
    if "download_url" in qualifiers and "checksum" in qualifiers:
        sha256 = qualifiers["checksum"].removeprefix("sha256:")
        return Artifact("file", version=version, url=qualifiers["download_url"], sha256=sha256, purl=text)
    return None
