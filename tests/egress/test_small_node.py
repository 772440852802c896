"""A whole node with 1 GB of memory and a disk of 40 GB, under load, and with the disk full."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.egress.memory import Group, memory_group
from tests.egress.node import Node
from tests.egress.up import TPROXY, up
from tests.netns.waiting import eventually
from tproxy.egress.bundle.creating import create
from tproxy.egress.layout import Layout
from tproxy.egress.signing import BUNDLE, KeyPair
from tproxy.egress.store.records import Record
from tproxy.egress.store.store import Store

MEMORY, DISK = 1 << 30, 40 << 30  # bytes
WHEELS, WHEEL = 40, 6 << 20  # how many are downloaded at once, and their bytes
LISTED = 5000  # files of the project that has an index
IMPORTED = 300 << 20  # bytes of the bundle

POLICY = """\
rules:
  - {networks: [build], pypi: [big, demo, late], get: ["https://host.example/*"]}
"""


class Small:
    """A node in a control group, which keeps what it keeps on a disk of its own."""

    def __init__(self, node: Node, group: Group) -> None:
        self.node, self.group = node, group
        image, disk = node.root / "disk", node.root / "mounted"
        with image.open("wb") as file:
            file.truncate(DISK)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
        disk.mkdir()
        # Where there are no loop devices, a tmpfs is as large, and has in memory only what is written.
        other = f"mount -t tmpfs -o size={DISK} tmpfs {disk}"
        steps = [f"echo $$ >{group.procs}", f"(mount -o loop {image} {disk} 2>/dev/null || {other})"]
        for each in (node.layout.state, node.layout.log):
            each.mkdir()
            steps += [f"mkdir {disk}/{each.name}", f"mount --bind {disk}/{each.name} {each}"]
        self.child = up(node, " && ".join(steps))
        # The authority's certificate, which is in the node's mount namespace only.
        self.trusted = node.root / "trusted.pem"
        self.trusted.write_text(self.run("cat", str(node.trusted)).stdout)
        self.proxy = node.caller(network="build")

    def command(self, *command: str) -> list[str]:
        """Return the command that runs another one as a program of the node."""
        return self.group.entering("nsenter", f"--target={self.child.pid}", "--mount", "--wd=/", *command)

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.node.run(*self.command(*command), check=check)

    def egress(self, *words: str) -> list[str]:
        return self.command(*TPROXY, *words, "--root", str(self.node.root))

    def get(self, url: str) -> tuple[int, str]:
        return self.node.curl(self.proxy, url, "--cacert", str(self.trusted))

    def downloads(self, urls: list[str]) -> list[int]:
        """Download all at once; return the statuses."""
        config = self.node.root / "curl"
        config.write_text("".join(f'url = "{url}"\noutput = /dev/null\n' for url in urls))
        limits = ("--parallel", "--parallel-immediate", "--parallel-max", str(len(urls)))
        command = ("curl", "-s", *limits, "--proxy", self.proxy, "--cacert", str(self.trusted))
        done = self.node.run(*command, "-w", "%{http_code}\n", "--config", str(config), check=False)
        return list(map(int, done.stdout.split()))


@pytest.fixture(scope="module")
def small(engines: None) -> Iterator[Small]:
    with memory_group(MEMORY) as group, Node(POLICY, squid=False) as node:
        found = Small(node, group)
        yield found
        found.child.terminate()
        found.child.wait()


def offer(node: Node, project: str, count: int, size: int) -> list[str]:
    """Put a project on pypi.org with wheels of one size; return the addresses of its files."""
    listed = []
    for number in range(count):
        name = f"{project}-1.{number}-py3-none-any.whl"
        content = os.urandom(16) * (size // 16)
        if size:
            node.site("files.pythonhosted.org", f"/packages/{name}", content)
        digest = hashlib.sha256(content or name.encode()).hexdigest()
        url = f"https://files.pythonhosted.org/packages/{name}"
        listed.append({"filename": name, "url": url, "hashes": {"sha256": digest}, "yanked": False})
    page = {"meta": {"api-version": "1.0"}, "name": project, "files": listed}
    media = {"Content-Type": "application/vnd.pypi.simple.v1+json"}
    node.site("pypi.org", f"/simple/{project}/", json.dumps(page), media)
    return [each["url"] for each in listed if isinstance(each["url"], str)]


def bundle(node: Node) -> tuple[Path, str]:
    """Make a bundle of one large file and many small ones; return it, and its key's fingerprint."""
    layout = Layout.below(node.root / "elsewhere")
    store = Store(layout.store)
    records = []
    for number, size in enumerate([IMPORTED, *[1000] * 500]):
        sha256 = store.blobs.put(os.urandom(size))
        records.append(
            Record("pypi", "demo", f"demo-2.{number}-py3-none-any.whl", sha256, size, f"2.{number}")
        )
    create(store, records, node.root / "bundle.tar", KeyPair(layout.keys, BUNDLE))
    store.close()
    return node.root / "bundle.tar", KeyPair(layout.keys, BUNDLE).fingerprint


def test_load_of_all_kinds_at_once_fits_into_the_memory(small: Small) -> None:
    wheels = offer(small.node, "big", WHEELS, WHEEL)
    offer(small.node, "demo", LISTED, 0)
    file, fingerprint = bundle(small.node)
    words = ("bundle", "import", str(file), "--trust", fingerprint)
    importing = small.node.popen(*small.egress(*words), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    for _ in range(2):  # fetched from upstream, and then from the store
        assert set(small.downloads([*wheels, *["https://pypi.org/simple/demo/"] * 8])) == {200}
    said, _ = importing.communicate()
    assert "is active" in said
    assert small.group.killed() == 0
    assert "runs" in small.node.run(*small.egress("status"), check=False).stdout


def test_a_full_disk_refuses_what_is_new_and_serves_what_is_there(small: Small) -> None:
    here, new = offer(small.node, "late", 2, 1 << 20)
    assert small.downloads([here]) == [200]
    filler = fill(small, 1 << 30)
    status, text = small.get(new)
    assert (status, "the store is full" in text) == (503, True)
    assert "the store is full" in small.node.run(*small.egress("status"), check=False).stdout
    assert small.downloads([here]) == [200]
    small.run("rm", str(filler))
    assert small.downloads([here, new]) == [200, 200]


def test_without_a_byte_on_the_disk_nothing_is_served_and_room_is_all_it_takes(small: Small) -> None:
    (here,) = offer(small.node, "big", 1, 1 << 20)
    assert small.downloads([here]) == [200]
    filler = fill(small, 0)
    small.run("dd", "if=/dev/zero", f"of={filler}.more", "bs=64k", check=False)  # root has some more
    for _ in eventually():  # lines of the log fill the last block
        if small.downloads([here] * 20) != [200] * 20:
            break
    small.run("rm", str(filler), f"{filler}.more")
    for _ in eventually():
        if small.downloads([here]) == [200]:
            break


def fill(small: Small, left: int) -> Path:
    """Leave so many bytes of the disk to users; root has some more. Return the file that takes the rest."""
    state = small.node.layout.state
    blocks, size = map(int, small.run("stat", "-f", "-c", "%a %S", str(state)).stdout.split())
    small.run("fallocate", "-l", str(blocks * size - left), str(state / "filler"))
    return state / "filler"
