"""Bills of materials in CycloneDX 1.6: what a network or guest fetched, or what a bundle brings. Pure.

What was fetched need not be installed: each bill says so in its metadata.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

from tproxy import __version__
from tproxy.egress.bundle.manifest import label
from tproxy.egress.store.records import Record
from tproxy.errors import TproxyError

NOTE = "Fetched does not mean installed: this lists what was downloaded, not what runs."


def of_entries(entries: Iterable[dict[str, Any]], subject: str) -> Bom:
    """Return the bill of what the ledger says was served. ``subject`` says for whom."""
    packages = [entry for entry in entries if _is_package(entry)]
    return _bom([(str(entry["purl"]), str(entry.get("sha256", ""))) for entry in packages], subject, NOTE)


def _is_package(entry: dict[str, Any]) -> bool:
    """Tell it from what belongs to a package, and has an entry of its own: layers, and metadata of wheels."""
    file = str(entry.get("file", ""))
    return not (entry.get("kind") == "oci" and file == "blobs") and not file.endswith(".whl.metadata")


def of_records(records: Iterable[Record], subject: str) -> Bom:
    """Return the bill of a bundle, or of the store."""
    found = [(label(record), record.sha256) for record in records]
    return _bom([each for each in found if each[0]], subject, NOTE)


def _bom(found: list[tuple[str, str]], subject: str, note: str) -> Bom:
    bom = Bom()
    bom.metadata.component = Component(name=subject, type=ComponentType.PLATFORM, bom_ref="subject")
    bom.metadata.tools.components.add(
        Component(name="tproxy egress", version=__version__, type=ComponentType.APPLICATION)
    )
    bom.metadata.properties.add(Property(name="tproxy:note", value=note))
    for text, sha256 in sorted(set(found)):
        purl = PackageURL.from_string(text)
        hashes = [HashType(alg=HashAlgorithm.SHA_256, content=sha256)] if sha256 else []
        image = purl.type == "oci"
        bom.components.add(
            Component(
                name=f"{purl.namespace}/{purl.name}" if purl.namespace and purl.type != "deb" else purl.name,
                version=purl.version,
                purl=purl,
                type=ComponentType.CONTAINER if image else ComponentType.LIBRARY,
                hashes=hashes,
                bom_ref=f"{text}#{sha256}",
            )
        )
    bom.register_dependency(bom.metadata.component, list(bom.components))
    return bom


def as_json(bom: Bom) -> str:
    """Return a bill as JSON of version 1.6."""
    text: str = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1)
    return text


def check(text: str) -> None:
    """Raise TproxyError unless this is valid CycloneDX 1.6. Needs cyclonedx-python-lib[json-validation]."""
    from cyclonedx.validation.json import JsonStrictValidator

    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error is not None:
        raise TproxyError(f"the bill of materials is not valid: {error}")
