"""The egress node: ``make bench-egress``, or ``python -m bench.egress [--rounds N] [--seconds N]``.

Takes some minutes, and prints tables with goals. Everything runs in one stand-in host, in turns:

* a hit: guests' downloads of one file of 100 MB from the mirror's own port, and from nginx, which reads the
  same PROXY header; one download at a time, and four at once
* an index page of a project with 100 files: requests a second of wrk on 8 connections, from the mirror and
  from proxpi, which runs in gunicorn as its image does; the same upstream is behind both
* memory: squid, its helpers, the mirror and the front of a whole node that has nothing to do
* an import of a bundle of 512 MB, and sha256sum of its file
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench import costs
from bench.__main__ import check_surroundings
from tproxy.egress.bundle.creating import create
from tproxy.egress.layout import Layout
from tproxy.egress.mirror.running import bundle_key
from tproxy.egress.store.records import Record
from tproxy.egress.store.store import Store
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import PATIENCE, Hypervisor

FILE = 100_000_000  # bytes
BLOBS, BLOB = 32, 16 << 20  # how many files the bundle has, and their bytes
FILES = 100  # of the project; requests has some 150, and most projects fewer

# The address of the upstream. It is one of the internet, because the mirror refuses inner ones.
SITE = "93.184.215.14"
URL, PROJECT = "https://host.example/file", "demo"
MIRROR, CLIENTS, NGINX, PROXPI = 3192, 3195, 8090, 8091

GOALS = {
    "hit, one download, of nginx": ("at least", 0.8),
    "hit, four downloads, of nginx": ("at least", 0.8),
    "index page in JSON, of proxpi": ("at least", 2.0),
    "index page in HTML, of proxpi": ("at least", 2.0),
    "import, of sha256sum": ("at least", 0.5),
    "memory of the idle node, MB": ("at most", 120.0),
}


def _command(*words: str) -> str:
    return "\0".join((sys.executable, "-m", "tproxy", "egress", *words))


# The processes of a node, by the beginnings of their command lines.
PARTS = {
    "squid and its helpers": ("squid",),
    "mirror": (_command("mirror"),),
    "front": (_command("run", "front"),),
}

_NGINX = """
worker_processes 1;
pid /run/nginx-egress.pid;
error_log /var/log/nginx-egress.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    default_type application/vnd.pypi.simple.v1+json;
    server {{ listen 127.0.0.1:{port} proxy_protocol; root {folder}/nginx; }}
    server {{ listen {site}:80; root {folder}/upstream; index index.json; }}
}}
"""

_POLICY = """\
upstreams: {{pypi_index: "http://index.example/simple/", pypi_files: ["http://index.example/"]}}
clients: {{127.0.0.0/8: build}}
rules:
- networks: [build]
  pypi: [{project}]
  files: [{{url: "{url}", sha256: {sha256}}}]
"""


class Bed:
    """A stand-in host with a mirror of its own, nginx and proxpi, below ``folder``."""

    def __init__(self, host: Hypervisor, folder: Path) -> None:
        self.host, self.folder, self.layout = host, folder, Layout.below(folder)
        content = os.urandom(FILE)
        (folder / "nginx").mkdir()
        (folder / "nginx/file").write_bytes(content)
        self._store(content)
        self._upstream()
        host.ip(f"address add {SITE}/32 dev lo")
        hosts = folder / "hosts"
        hosts.write_text(f"{SITE} index.example\n127.0.0.1 localhost\n")
        host.run("mount", "--bind", str(hosts), "/etc/hosts")
        text = _NGINX.format(port=NGINX, folder=folder, site=SITE)
        host.run("nginx", "-c", host.write("/run/nginx-egress.conf", text))
        self._start_mirror()
        proxpi = ("-m", "gunicorn", "--preload", "--threads", "2", "--bind", f"127.0.0.1:{PROXPI}")
        host.popen(
            sys.executable,
            *(*proxpi, "proxpi.server:app"),
            env={**os.environ, "PROXPI_INDEX_URL": "http://index.example/simple/"},
            stderr=subprocess.DEVNULL,
        )
        for port in (MIRROR, CLIENTS, PROXPI):
            self.wait_for(port)

    def tproxy(self, *words: str) -> list[str]:
        """Return the words of a command of the egress for this node."""
        return [sys.executable, "-m", "tproxy", "egress", *words, "--root", str(self.folder)]

    def wait_for(self, port: int) -> None:
        """Return when somebody listens. Raises ProcessError."""
        deadline = time.monotonic() + PATIENCE
        while not self.host.run("ss", "-Hltn", f"sport = :{port}").stdout:
            if time.monotonic() > deadline:
                raise ProcessError(f"nobody listens on port {port}")
            time.sleep(0.1)

    def _store(self, content: bytes) -> None:
        sha256 = hashlib.sha256(content).hexdigest()
        self.layout.etc.mkdir()
        self.layout.policy.write_text(_POLICY.format(project=PROJECT, url=URL, sha256=sha256))
        store = Store(self.layout.store)
        store.blobs.put(content)
        store.add(Record("file", URL, "", sha256, len(content), origin=URL))
        store.close()

    def _upstream(self) -> None:
        names = [f"{PROJECT}-1.{number}-py3-none-any.whl" for number in range(FILES)]
        files = [
            {
                "filename": name,
                "url": f"http://index.example/packages/{name}",
                "hashes": {"sha256": hashlib.sha256(name.encode()).hexdigest()},
                "core-metadata": {"sha256": hashlib.sha256(name.encode()).hexdigest()},
                "requires-python": ">=3.8",
                "size": 1000,
                "yanked": False,
            }
            for name in names
        ]
        page = {
            "meta": {"api-version": "1.1"},
            "name": PROJECT,
            "files": files,
            "versions": [f"1.{number}" for number in range(FILES)],
        }
        projects = {"meta": {"api-version": "1.1"}, "projects": [{"name": PROJECT}]}
        folder = self.folder / "upstream/simple"
        (folder / PROJECT).mkdir(parents=True)
        (folder / "index.json").write_text(json.dumps(projects))
        (folder / PROJECT / "index.json").write_text(json.dumps(page))

    def _start_mirror(self) -> None:
        command = self.tproxy("mirror", "run", "--clients-port", str(CLIENTS))
        self.mirror = self.host.popen(*command, stderr=subprocess.DEVNULL)


def rate(bed: Bed, port: int, path: str, count: int, seconds: float) -> float:
    """Return the megabytes a second of so many guests together."""
    words = (sys.executable, "-m", "bench.downloads", str(port), path, "build", str(seconds))
    children = [bed.host.popen(*words, stdout=subprocess.PIPE) for _ in range(count)]
    total = 0.0
    for child in children:
        said, _ = child.communicate(timeout=seconds + PATIENCE)
        if child.returncode:
            raise ProcessError(f"a download from port {port} failed")
        size, taken = said.split()
        total += int(size) / float(taken)
    return total / 1e6


def pages(bed: Bed, url: str, media: str, seconds: float) -> float:
    """Return the requests a second that are answered with 200."""
    words = ("wrk", "-t", "1", "-c", "8", "-d", f"{seconds:g}s", "-H", f"Accept: {media}", url)
    said = bed.host.run(*words, timeout=seconds + PATIENCE).stdout
    if "Non-2xx" in said:
        raise ProcessError(f"{url} is not answered:\n{said}")
    line = next(line for line in said.splitlines() if line.startswith("Requests/sec:"))
    return float(line.split()[1])


def bundle(folder: Path) -> tuple[Path, str]:
    """Make a bundle of wheels that cannot be compressed. Return its file, and the fingerprint of its key."""
    layout = Layout.below(folder)
    store = Store(layout.store)
    records = []
    for number in range(BLOBS):
        name = f"{PROJECT}-1.{number}-py3-none-any.whl"
        sha256 = store.blobs.put(os.urandom(BLOB))
        records.append(Record("pypi", PROJECT, name, sha256, BLOB, f"1.{number}"))
    target = folder / "bundle.tar"
    create(store, records, target, bundle_key(layout))
    store.close()
    shutil.rmtree(layout.store)
    return target, bundle_key(layout).fingerprint


def importing(bed: Bed, file: Path, fingerprint: str) -> float:
    """Return the megabytes a second of an import into an empty store, the start of the program included."""
    with tempfile.TemporaryDirectory(dir=bed.folder) as root:
        words = ("bundle", "import", str(file), "--trust", fingerprint, "--root", root)
        return _timed(file, [sys.executable, "-m", "tproxy", "egress", *words])


def hashing(bed: Bed, file: Path) -> float:
    """Return the megabytes a second of sha256sum."""
    return _timed(file, ["sha256sum", str(file)])


def _timed(file: Path, command: Sequence[str]) -> float:
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return file.stat().st_size / (time.monotonic() - began) / 1e6


def memory(host: Hypervisor, folder: Path) -> dict[str, float]:
    """Return the PSS of each part of a whole node without guests, in MB."""
    layout = Layout.below(folder)
    layout.etc.mkdir()
    layout.policy.write_text("rules: []\n")
    where = ("--root", str(folder))
    up = (sys.executable, "-m", "tproxy", "egress", "up", "--foreground", *where)
    with (folder / "log").open("w") as log:
        node = host.popen(*up, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        while host.tproxy("egress", "status", *where, check=False).returncode:
            if node.poll() is not None or time.monotonic() > deadline:
                raise ProcessError(f"the node does not start: {(folder / 'log').read_text()}")
            time.sleep(0.2)
        found = {}
        for name, words in PARTS.items():
            pids = costs.family(host, costs.titled(host, *words))
            found[name] = costs.memory(host, pids).pss / 1e6
        node.terminate()
        node.wait(PATIENCE)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bench.egress", description="the egress node, against peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args(arguments)
    check_surroundings()
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="tproxy-bench-") as name, Hypervisor() as host:
        folder = Path(name)
        folder.chmod(0o755)  # squid's user reads the policy
        (folder / "bed").mkdir()
        bed = Bed(host, folder / "bed")
        file, fingerprint = bundle(_made(folder / "made"))
        jobs = _jobs(bed, file, fingerprint, options.seconds)
        for number in range(options.rounds + 1):  # in turns, and the first one only warms up
            for what, job in jobs.items():
                figure = job()
                if number:
                    found.setdefault(what, []).append(figure)
                print(f"round {number}: {what}: {figure:,.0f}", file=sys.stderr)
        bed.mirror.terminate()
        bed.mirror.wait(PATIENCE)
        parts = memory(host, _made(folder / "idle"))
    print_table({what: statistics.median(figures) for what, figures in found.items()}, parts)


def _made(folder: Path) -> Path:
    folder.mkdir()
    folder.chmod(0o755)
    return folder


def _jobs(bed: Bed, file: Path, fingerprint: str, seconds: float) -> dict[str, Callable[[], float]]:
    ours, theirs = "/files/https/host.example/file", "/file"
    jobs: dict[str, Callable[[], float]] = {}
    for count, word in ((1, "one download"), (4, "four downloads")):
        jobs[f"hit, {word}: mirror, MB/s"] = lambda count=count: rate(bed, MIRROR, ours, count, seconds)
        jobs[f"hit, {word}: nginx, MB/s"] = lambda count=count: rate(bed, NGINX, theirs, count, seconds)
    for media, word in (("application/vnd.pypi.simple.v1+json", "JSON"), ("text/html", "HTML")):
        for name, url in (
            ("mirror", f"http://127.0.0.1:{CLIENTS}/pypi/simple/{PROJECT}/"),
            ("proxpi", f"http://127.0.0.1:{PROXPI}/index/{PROJECT}/"),
        ):
            jobs[f"index page in {word}: {name}, requests/s"] = lambda url=url, media=media: pages(
                bed, url, media, seconds
            )
    jobs["import: tproxy, MB/s"] = lambda: importing(bed, file, fingerprint)
    jobs["import: sha256sum, MB/s"] = lambda: hashing(bed, file)
    return jobs


def print_table(figures: Mapping[str, float], parts: Mapping[str, float]) -> None:
    """Print figures and goals in Markdown."""
    ratios: dict[str, float] = {}
    measured = iter(figures.items())
    print("| | tproxy | peer |\n| --- | --- | --- |")
    for (what, ours), (peer, theirs) in zip(measured, measured, strict=True):
        name, unit = what.partition(":")[0], what.rpartition(", ")[2]
        other = peer.partition(": ")[2].rpartition(", ")[0]
        ratios[f"{name}, of {other}"] = ours / theirs
        print(f"| {name}, {unit} | {ours:,.0f} | {other} {theirs:,.0f} |")
    print(f"| memory of the idle node, MB | {', '.join(f'{n} {each:.1f}' for n, each in parts.items())} | |")
    ratios["memory of the idle node, MB"] = sum(parts.values())
    print("\n| axis | goal | this run |\n| --- | --- | --- |")
    for name, (word, goal) in GOALS.items():
        met = ratios[name] >= goal if word == "at least" else ratios[name] <= goal
        print(f"| {name} | {word} {goal:g} | {ratios[name]:.2f}{'' if met else ', missed'} |")


if __name__ == "__main__":
    main()
