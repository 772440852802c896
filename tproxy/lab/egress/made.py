"""Makes what the sites of the tour offer: a wheel, a Debian package, an image and a collection.

Everything is made here, with the kinds' own tools where needed. ``root`` is the directory of all sites.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import lzma
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tproxy.errors import ProcessError

PYPI, FILES, DEBIAN = "pypi.org", "files.pythonhosted.org", "deb.debian.org"
HUB, GALAXY, PLAIN = "registry-1.docker.io", "galaxy.ansible.com", "host.example"
HOSTS = (PYPI, FILES, DEBIAN, HUB, GALAXY, PLAIN)

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def put(root: Path, host: str, path: str, body: bytes, **headers: str) -> None:
    """Offer a page. A path that ends in "/" is a directory, which may have other paths in it."""
    file = root / host / path.lstrip("/")
    if path.endswith("/"):
        file /= "index.html"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(body)
    if headers:
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        file.with_name(file.name + ".headers").write_text(json.dumps(named))


def wheel(
    name: str,
    version: str,
    requires: Sequence[str] = (),
    more: Mapping[str, bytes] | None = None,
    tag: str = "py3-none-any",
) -> tuple[str, bytes, bytes]:
    """Return file name, content and METADATA of a wheel with one module. ``more`` are further files in it."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Python: >=3.8\n"
    metadata += "".join(f"Requires-Dist: {each}\n" for each in requires)
    files = {
        f"{module}.py": f"VERSION = {version!r}\n".encode(),
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: lab\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
        **(more or {}),
    }
    record = ""
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(content)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, content in files.items():
            archive.writestr(zipfile.ZipInfo(path), content)  # of 1980, so that it is the same each time
    return f"{module}-{version}-{tag}.whl", buffer.getvalue(), metadata.encode()


def project(root: Path, name: str, *versions: str) -> None:
    """Offer a project of Python with these versions."""
    links = ""
    for version in versions:
        filename, body, _ = wheel(name, version)
        path = f"/packages/{filename}"
        put(root, FILES, path, body)
        digest = hashlib.sha256(body).hexdigest()
        links += f'<a href="https://{FILES}{path}#sha256={digest}">{filename}</a>\n'
    page = f"<html><body>\n{links}</body></html>".encode()
    put(root, PYPI, f"/simple/{name}/", page, Content_Type="text/html")


def debian(root: Path, folder: Path, package: str) -> str:
    """Offer a Debian package in the suite bookworm. Return the key that signs it."""
    tree = folder / package
    (tree / "DEBIAN").mkdir(parents=True)
    control = (
        f"Package: {package}\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <nobody@host.example>\n"
    )
    control += "Description: a package of the lab\n"
    (tree / "DEBIAN/control").write_text(control)
    (tree / "usr/share" / package).mkdir(parents=True)
    (tree / "usr/share" / package / "data").write_text("from Debian's site\n")
    deb = folder / f"{package}_1.0_all.deb"
    _run("dpkg-deb", "--build", "--root-owner-group", str(tree), str(deb))
    body, where = deb.read_bytes(), f"pool/main/{package[0]}/{package}/{deb.name}"
    put(root, DEBIAN, f"/debian/{where}", body)
    digest = hashlib.sha256(body).hexdigest()
    listing = f"{control}Filename: {where}\nSize: {len(body)}\nSHA256: {digest}\n".encode()
    release = "Origin: Lab\nSuite: bookworm\nCodename: bookworm\nDate: Thu, 01 Jan 2026 00:00:00 UTC\n"
    release += "Architectures: amd64 arm64 all\nComponents: main\nSHA256:\n"
    for architecture in ("amd64", "arm64", "all"):
        for ending, data in (("", listing), (".xz", lzma.compress(listing))):
            path = f"main/binary-{architecture}/Packages{ending}"
            put(root, DEBIAN, f"/debian/dists/bookworm/{path}", data)
            release += f" {hashlib.sha256(data).hexdigest()} {len(data)} {path}\n"
    home = folder / "gpg"
    home.mkdir(mode=0o700)
    gpg = ("gpg", "--homedir", str(home), "--batch", "--quiet", "--no-tty", "--pinentry-mode", "loopback")
    try:
        _run(*gpg, "--passphrase", "", "--quick-gen-key", "lab", "ed25519", "sign", "never")
        signed = _run(*gpg, "--clearsign", given=release.encode())
        put(root, DEBIAN, "/debian/dists/bookworm/InRelease", signed)
        return _run(*gpg, "--armor", "--export").decode()
    finally:
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False)


def image(root: Path, repository: str, tag: str) -> None:
    """Offer an image of one layer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("from-the-hub")
        archive.addfile(info, io.BytesIO())
    layer = gzip.compress(buffer.getvalue(), mtime=0)
    rootfs = {"type": "layers", "diff_ids": [_digest(buffer.getvalue())]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode()
    media = "application/vnd.oci.image."
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": {"mediaType": f"{media}config.v1+json", "digest": _digest(config), "size": len(config)},
            "layers": [
                {"mediaType": f"{media}layer.v1.tar+gzip", "digest": _digest(layer), "size": len(layer)}
            ],
        }
    ).encode()
    for blob in (config, layer):
        put(root, HUB, f"/v2/{repository}/blobs/{_digest(blob)}", blob)
    for reference in (tag, _digest(manifest)):
        put(root, HUB, f"/v2/{repository}/manifests/{reference}", manifest, Content_Type=_MANIFEST)


def collection(root: Path, folder: Path, namespace: str, name: str) -> None:
    """Offer a collection of Ansible, version 1.0.0, built by ansible-galaxy."""
    source = folder / f"{namespace}.{name}"
    (source / "meta").mkdir(parents=True)
    about = {"namespace": namespace, "name": name, "version": "1.0.0", "readme": "README.md"}
    (source / "galaxy.yml").write_text(json.dumps({**about, "authors": ["nobody"], "dependencies": {}}))
    (source / "README.md").write_text("A collection of the lab.\n")
    (source / "meta/runtime.yml").write_text("requires_ansible: '>=2.9'\n")
    galaxy = str(Path(sys.executable).with_name("ansible-galaxy"))
    _run(galaxy, "collection", "build", "--output-path", str(folder), str(source))
    filename = f"{namespace}-{name}-1.0.0.tar.gz"
    body = (folder / filename).read_bytes()
    put(root, GALAXY, f"/artifacts/{filename}", body)
    base = f"/api/v3/collections/{namespace}/{name}/versions/"
    versions = {
        "meta": {"count": 1},
        "links": {"next": None},
        "data": [{"version": "1.0.0", "href": f"{base}1.0.0/"}],
    }
    version = {
        "version": "1.0.0",
        "namespace": {"name": namespace},
        "collection": {"name": name},
        "artifact": {"filename": filename, "sha256": hashlib.sha256(body).hexdigest(), "size": len(body)},
        "metadata": {"dependencies": {}},
        "download_url": f"https://{GALAXY}/artifacts/{filename}",
    }
    for path, found in ((base, versions), (f"{base}1.0.0/", version)):
        put(root, GALAXY, path, json.dumps(found).encode(), Content_Type="application/json")


def certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for all sites. Return the file with its key, and that of its authority."""
    new = (
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-noenc",
        "-days",
        "2",
    )
    key, authority, site = folder / "ca.key", folder / "sites-ca.pem", folder / "site.pem"
    _run(*new, "-subj", "/CN=authority of the lab's sites", "-keyout", str(key), "-out", str(authority))
    names = "subjectAltName=" + ",".join(f"DNS:{host}" for host in HOSTS)
    own = ("-subj", "/CN=sites", "-addext", names, "-addext", "basicConstraints=critical,CA:false")
    signer = ("-CA", str(authority), "-CAkey", str(key))
    _run(*new, *own, *signer, "-keyout", str(folder / "site.key"), "-out", str(folder / "site.crt"))
    site.write_bytes((folder / "site.key").read_bytes() + (folder / "site.crt").read_bytes())
    return site, authority


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _run(*command: str, given: bytes = b"") -> bytes:
    done = subprocess.run(command, input=given, capture_output=True, check=False)
    if done.returncode:
        raise ProcessError(f"{command[0]} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
