"""Wheels and an index of them, made in the test: nothing is downloaded."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile

from tests.egress.node import Node


def wheel(name: str, version: str) -> bytes:
    """Return a wheel with one module, which pip accepts."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"version = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return buffer.getvalue()


def publish(node: Node, name: str, *versions: str) -> None:
    """Put a project with these versions on the node's pypi.org."""
    links = ""
    for version in versions:
        body = wheel(name, version)
        digest = hashlib.sha256(body).hexdigest()
        path = f"/packages/{digest[:2]}/{name}-{version}-py3-none-any.whl"
        node.site("files.pythonhosted.org", path, body)
        links += (
            f'<a href="https://files.pythonhosted.org{path}#sha256={digest}">{path.rpartition("/")[2]}</a>\n'
        )
    node.site("pypi.org", f"/simple/{name}/index.html", f"<html><body>\n{links}</body></html>")
