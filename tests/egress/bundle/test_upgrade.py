"""The appliance in a bundle: an import keeps it, and `tproxy egress upgrade` alone installs it.

Nothing of this machine changes: each test installs in a mount namespace, whose network has no link.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest

from tests.egress.asking import get
from tests.egress.running import running
from tproxy import __version__
from tproxy.egress.bundle.appliance import take
from tproxy.egress.bundle.creating import create
from tproxy.egress.bundle.importing import import_bundle
from tproxy.egress.bundle.manifest import BundleError
from tproxy.egress.layout import Layout
from tproxy.egress.mirror.settings import Settings
from tproxy.egress.signing import BUNDLE, KeyPair
from tproxy.egress.store.store import Store
from tproxy.egress.upgrade.staging import staged
from tproxy.lab.egress.made import wheel

CHECKOUT = Path(__file__).parents[3]

PRINTS = b"import sys; print('tproxy, version %s')\n"


class Node:
    """A node below a directory, which makes bundles and imports them."""

    def __init__(self, root: Path) -> None:
        self.root, self.layout = root, Layout.below(root / "node")
        self.layout.etc.mkdir(parents=True)
        self.layout.policy.write_text("mode: dmz\nrules: []\n")
        self.store = Store(self.layout.store)
        self.key = KeyPair(self.layout.keys, BUNDLE)
        self.appliance = root / "appliance"
        self.appliance.mkdir()

    def bundle(self, name: str = "b.tar") -> Path:
        """Make a bundle of what is in ``appliance``, and import it."""
        _, (path,) = create(self.store, take(self.store, [self.appliance]), self.root / name, self.key)
        import_bundle(self.store, path, self.key.fingerprint)
        return path

    def wheels(self, version: str, *requires: str) -> None:
        """Put a wheel of tproxy there, which does no more than to print its version."""
        shutil.rmtree(self.appliance)
        self.appliance.mkdir()
        program = {"tproxy/__main__.py": PRINTS % version.encode(), "tproxy/__init__.py": b""}
        for name, content, _ in (
            wheel("one-tproxy", version, requires, program),
            wheel("needed", "2.0"),
            wheel("unneeded", "3.0"),
        ):
            (self.appliance / name).write_bytes(content)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    found = Node(tmp_path)
    yield found
    found.store.close()


def run(*command: str, code: int = 0, **more: str) -> str:
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **more}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


class Environment:
    """A virtual environment that finds the checkout and what it needs, and cannot write there."""

    def __init__(self, node: Node) -> None:
        self.node, self.prefix = node, node.root / "venv"
        run(sys.executable, "-m", "venv", "--without-pip", str(self.prefix))
        (packages,) = self.prefix.glob("lib/python*/site-packages")
        own = [path for path in sys.path if path.endswith("site-packages")]
        (packages / "checkout.pth").write_text("".join(f"{path}\n" for path in (CHECKOUT, *own)))

    def upgrade(self, *words: str, code: int = 0) -> str:
        # After an upgrade the environment has a tproxy of its own; the one of the checkout is meant.
        python = [str(self.prefix / "bin/python"), "-m", "tproxy", "egress", "upgrade", *words]
        inside = f'mount -o bind,ro {sys.prefix} {sys.prefix} && exec "$@"'
        command = ["unshare", "--mount", "--net", "sh", "-c", inside, "sh", *python]
        return run(*command, "--root", str(self.node.root / "node"), code=code, PYTHONPATH=str(CHECKOUT))

    @property
    def version(self) -> str:
        return run(str(self.prefix / "bin/python"), "-I", "-m", "tproxy", "--version").split()[-1]

    @property
    def packages(self) -> set[str]:
        (packages,) = self.prefix.glob("lib/python*/site-packages")
        return {path.name.partition("-")[0] for path in packages.glob("*.dist-info")}


def test_an_import_installs_nothing_and_serves_nothing_of_the_appliance(node: Node) -> None:
    node.wheels("9.0", "needed>=2")
    node.bundle()
    environment = Environment(node)
    assert (environment.version, environment.packages) == (__version__, set())
    with running(Settings(node.store.root, sealed=True)) as mirror:
        assert get(f"{mirror.url}pypi/simple/one-tproxy/")[0] == 404
        assert get(f"{mirror.url}pypi/files/one-tproxy/one_tproxy-9.0-py3-none-any.whl")[0] == 404
    assert {record.kind for record in node.store.all()} == {"appliance"}


def test_an_upgrade_from_wheels_and_the_way_back(node: Node) -> None:
    node.wheels("9.0", "needed>=2")
    path = node.bundle()
    environment = Environment(node)
    out = environment.upgrade("--from", str(path), "--dry-run")
    assert f"one-tproxy {__version__} -> 9.0\n" in out
    assert "needed none -> 2.0\n" in out
    assert "unneeded" not in out
    assert (environment.version, environment.packages) == (__version__, set())
    assert "upgrade --back" in environment.upgrade("--from", "1")
    assert (environment.version, environment.packages) == ("9.0", {"one_tproxy", "needed"})
    environment.upgrade("--back")
    assert (environment.version, environment.packages) == (__version__, set())
    environment.upgrade("--back")
    assert environment.version == "9.0"
    node.wheels("0.0.1")
    node.bundle("older.tar")
    assert "--downgrade allows that" in environment.upgrade("--from", "2", code=1)
    environment.upgrade("--from", "2", "--downgrade")
    assert environment.version == "0.0.1"


def test_an_upgrade_that_fails_changes_nothing(node: Node) -> None:
    node.wheels("9.0")
    (node.appliance / "one_tproxy-9.0-py3-none-any.whl").write_bytes(
        wheel("one-tproxy", "9.0", (), {"tproxy/__main__.py": b"1 / 0\n", "tproxy/__init__.py": b""})[1]
    )
    node.bundle()
    environment = Environment(node)
    assert "ZeroDivisionError" in environment.upgrade("--from", "1", code=1)
    assert environment.version == __version__
    assert sorted(path.name for path in node.root.glob("venv*")) == ["venv"]


def test_a_bundle_that_is_not_verified_is_refused(node: Node) -> None:
    node.wheels("9.0")
    path = node.bundle()
    content = path.read_bytes()

    def refused(source: Path | str, why: str) -> None:
        with pytest.raises(BundleError, match=why), staged(node.store, str(source)):
            pass

    with tarfile.open(path) as archive:
        wheels = [each for each in archive.getmembers() if each.name.startswith("blobs/")]
    for member in wheels:
        at = member.offset_data + member.size // 2
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        refused(path, "of the bundle is damaged")
    path.write_bytes(content[: len(content) // 2])
    refused(path, "cut off")
    manifest = node.store.bundles / "1/manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"9.0"', b'"9.1"'))
    refused("1", "the signature of bundle 1 is not good")
    other = KeyPair(node.root / "others", "other")
    _, (forged,) = create(node.store, take(node.store, [node.appliance]), node.root / "f.tar", other)
    refused(forged, "trusted is")
    assert list(node.store.root.glob("tproxy-upgrade.*")) == []


def test_what_the_wheels_lack_is_listed_and_no_bundle_is_made(node: Node) -> None:
    node.wheels("9.0", "absent>=1")
    (node.root / "list.txt").write_text("")
    words = ["bundle", "create", str(node.root / "list.txt"), "--output", str(node.root / "b.tar")]
    command = [sys.executable, "-m", "tproxy", "egress", *words, "--root", str(node.root / "node")]
    out = run(*command, "--appliance", str(node.appliance), code=1)
    assert "missing: appliance: one-tproxy[egress]==9.0 for Python 3.11:" in out
    assert "absent" in out
    node.wheels("9.0", "needed")
    run(*command, "--appliance", str(node.appliance))
    (node.appliance / "notes.txt").touch()
    assert "notes.txt is no wheel" in run(*command, "--appliance", str(node.appliance), code=1)
    (node.appliance / "notes.txt").unlink()
    (node.appliance / "one_tproxy-9.0-py3-none-any.whl").unlink()
    with pytest.raises(BundleError, match="no wheel one-tproxy"):
        take(node.store, [node.appliance])


def test_the_oci_archive_is_written_for_the_container_engine(node: Node, tmp_path: Path) -> None:
    node.wheels("9.0")
    archive = node.appliance / "appliance.tar"
    subprocess.run(
        ["skopeo", "copy", f"oci:{image(tmp_path)}:9.0", f"oci-archive:{archive}:tproxy:9.0"], check=True
    )
    node.bundle()
    written = tmp_path / "out.tar"
    Environment(node).upgrade("--from", "1", "--image", str(written))
    assert written.read_bytes() == archive.read_bytes()
    found = json.loads(run("skopeo", "inspect", "--raw", f"oci-archive:{written}"))
    assert found["schemaVersion"] == 2
    assert "appliance.tar@9.0" in bundle_diff(node)


def bundle_diff(node: Node) -> str:
    words = ("sbom", "--bundle", "1", "--root", str(node.root / "node"))
    return run(sys.executable, "-m", "tproxy", "egress", *words)


def image(folder: Path) -> Path:
    """Return a directory with an image in the OCI layout."""
    layer = folder / "layer.tar"
    with tarfile.open(layer, "w") as archive:
        archive.addfile(tarfile.TarInfo("file"), BytesIO())
    found = folder / "image"
    subprocess.run(
        ["skopeo", "copy", f"tarball:{layer}", f"oci:{found}:9.0"], check=True, capture_output=True
    )
    return found


def deb(folder: Path, version: str, depends: str) -> Path:
    """Build tproxy's package with the code of the checkout in it."""
    tree = folder / f"tproxy_{version}"
    shutil.copytree(
        CHECKOUT / "tproxy", tree / "usr/lib/tproxy/tproxy", ignore=shutil.ignore_patterns("__pycache__")
    )
    return build(tree, "tproxy", version, depends)


def build(tree: Path, name: str, version: str, depends: str = "") -> Path:
    (tree / "DEBIAN").mkdir(parents=True)
    control = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: nobody <n@example.org>\n"
    control += f"Depends: {depends}\n" if depends else ""
    (tree / "DEBIAN/control").write_text(control + "Description: of a test\n")
    path = tree.parent / f"{name}_{version}_all.deb"
    run("dpkg-deb", "-Znone", "--build", "--root-owner-group", str(tree), str(path))
    return path


@contextmanager
def machine(folder: Path) -> Iterator[str]:
    """Run a copy of this machine in memory, without a network; yield its process's id."""
    files = CHECKOUT / "tproxy/lab/egress/guest.sh"
    (folder / "machine").mkdir()
    command = ["unshare", "--mount", "--uts", "--net", "sh", str(files), str(folder / "machine"), "appliance"]
    command += [str(folder), str(CHECKOUT), sys.prefix]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready, _, pid = process.stdout.readline().strip().partition(" ")
            assert ready == "ready"
            yield pid
        finally:
            process.kill()


def test_an_upgrade_from_debian_packages_and_the_way_back(node: Node) -> None:
    build(node.appliance / "needed", "needed", "2.0")
    build(node.appliance / "unneeded", "unneeded", "3.0")
    for tree in ("needed", "unneeded"):
        shutil.rmtree(node.appliance / tree)
    made = node.root / "made"
    for version, depends in {"1.0-1": "", "2.0-1": "needed"}.items():
        package = deb(made, version, depends)
        (node.appliance / package.name).write_bytes(package.read_bytes())
        node.bundle(f"{version}.tar")
        (node.appliance / package.name).unlink()
    with machine(node.root) as pid:
        inside = ("nsenter", "--target", pid, "--mount", "--uts", "--net", "--root", "--wd")
        paths = f"/usr/lib/tproxy:{next(path for path in sys.path if path.endswith('site-packages'))}"

        def upgrade(*words: str, code: int = 0) -> str:
            command = (str(Path(sys.executable).resolve()), "-m", "tproxy", "egress", "upgrade", *words)
            options = ("--root", str(node.root / "node"))
            return run(*inside, *command, *options, code=code, PYTHONPATH=paths)

        def installed() -> str:
            return run(*inside, "dpkg-query", "--show", "--showformat=${Version}", "tproxy")

        run(*inside, "dpkg", "--install", str(made / "tproxy_1.0-1_all.deb"))
        assert "needed (2.0" in upgrade("--from", "2", "--dry-run")
        assert installed() == "1.0-1"
        out = upgrade("--from", "2")
        assert "tproxy [1.0-1] (2.0-1" in out
        assert "needed (2.0" in out
        assert installed() == "2.0-1"
        assert "unneeded" not in run(*inside, "dpkg-query", "--show")
        assert "--downgrade allows that" in upgrade("--from", "1", code=1)
        upgrade("--from", "1", "--downgrade")
        assert installed() == "1.0-1"
    assert (
        subprocess.run(["dpkg-query", "--show", "tproxy"], capture_output=True, check=False).returncode == 1
    )
