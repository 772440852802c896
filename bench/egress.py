"""The egress node: ``make bench-egress``, or ``python -m bench.egress [--rounds N] [--seconds N]``.

Takes some minutes, and prints a table with goals. Everything runs in one stand-in host, in turns:

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
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from bench import claims, costs
from bench.__main__ import check_surroundings
from bench.axes import Goal
from bench.claims import Claim, Figure
from bench.results import Results
from tproxy.egress.bundle.creating import create
from tproxy.egress.layout import Layout
from tproxy.egress.signing import BUNDLE, KeyPair
from tproxy.egress.store.records import Record
from tproxy.egress.store.store import Store
from tproxy.errors import ProcessError
from tproxy.lab.egress import passing
from tproxy.lab.hypervisor import PATIENCE, Hypervisor

FILE = 100_000_000  # bytes
BLOBS, BLOB = 32, 16 << 20  # how many files the bundle has, and their bytes
FILES = 100  # of the project; requests has some 150, and most projects fewer

# The address of the upstream. It is one of the internet, because the mirror refuses inner ones.
SITE = "93.184.215.14"
URL, PROJECT = "https://host.example/file", "demo"
MIRROR, CLIENTS, NGINX, PROXPI = 3192, 3195, 8090, 8091

ONE, FOUR, JSON, HTML, IMPORT = "one download", "four downloads", "JSON", "HTML", "bundle"
IDLE = "idle"
TPROXY, SHA256SUM = "tproxy", "sha256sum"

CLAIMS = (
    *(
        Claim(
            f"a hit, {axis}, by nginx", Figure(TPROXY, axis), Goal("≥", 0.8), Figure("nginx", axis), " MB/s"
        )
        for axis in (ONE, FOUR)
    ),
    *(
        Claim(
            f"an index page in {axis}, by proxpi",
            Figure(TPROXY, axis),
            Goal("≥", 2.0),
            Figure("proxpi", axis),
            "/s",
        )
        for axis in (JSON, HTML)
    ),
    Claim(
        "an import, by sha256sum", Figure(TPROXY, IMPORT), Goal("≥", 0.5), Figure(SHA256SUM, IMPORT), " MB/s"
    ),
    Claim("memory of the idle node", Figure(TPROXY, IDLE), Goal("≤", 120.0), None, " MB"),
)


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
inner: [{site}]
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
        self.layout.policy.write_text(_POLICY.format(project=PROJECT, url=URL, sha256=sha256, site=SITE))
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
    key = KeyPair(layout.keys, BUNDLE)
    create(store, records, target, key)
    store.close()
    shutil.rmtree(layout.store)
    return target, key.fingerprint


def importing(bed: Bed, file: Path, fingerprint: str) -> float:
    """Return the megabytes a second of an import into an empty store, the start of the program included."""
    with tempfile.TemporaryDirectory(dir=bed.folder) as root:
        words = ("bundle", "import", str(file), "--trust", fingerprint, "--root", root)
        return _timed(file, [sys.executable, "-m", "tproxy", "egress", *words])


def hashing(file: Path) -> float:
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
    with (folder / "up.log").open("w") as log:
        node = host.popen(*up, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        while host.tproxy("egress", "status", *where, check=False).returncode:
            if node.poll() is not None or time.monotonic() > deadline:
                raise ProcessError(f"the node does not start: {(folder / 'up.log').read_text()}")
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
    results = Results()
    with passing.folder("tproxy-bench-") as folder, Hypervisor() as host:
        bed = Bed(host, _made(folder / "bed"))
        file, fingerprint = bundle(_made(folder / "made"))
        for number in range(options.rounds + 1):  # in turns, and the first one only warms up
            for peer, axis, job in _jobs(bed, file, fingerprint, options.seconds):
                figure = job()
                if number:
                    results.add(peer, {axis: figure})
                print(f"round {number}: {axis}: {peer}: {figure:,.0f}", file=sys.stderr)
        bed.mirror.terminate()
        bed.mirror.wait(PATIENCE)
        parts = memory(host, _made(folder / "idle"))
    results.add(TPROXY, {IDLE: sum(parts.values())})
    print(claims.table(results, CLAIMS))
    print(f"\nMemory: {', '.join(f'{part} {figure:.0f} MB' for part, figure in parts.items())}.")


def _made(folder: Path) -> Path:
    folder.mkdir()
    folder.chmod(0o755)
    return folder


def _jobs(
    bed: Bed, file: Path, fingerprint: str, seconds: float
) -> Iterator[tuple[str, str, Callable[[], float]]]:
    """Yield each peer and axis, with what measures it."""
    for count, axis in ((1, ONE), (4, FOUR)):
        for peer, port, path in (
            ("nginx", NGINX, "/file"),
            (TPROXY, MIRROR, "/files/https/host.example/file"),
        ):
            yield peer, axis, partial(rate, bed, port, path, count, seconds)
    for media, axis in (("application/vnd.pypi.simple.v1+json", JSON), ("text/html", HTML)):
        for peer, url in (
            ("proxpi", f"http://127.0.0.1:{PROXPI}/index/{PROJECT}/"),
            (TPROXY, f"http://127.0.0.1:{CLIENTS}/pypi/simple/{PROJECT}/"),
        ):
            yield peer, axis, partial(pages, bed, url, media, seconds)
    yield SHA256SUM, IMPORT, partial(hashing, file)
    yield TPROXY, IMPORT, partial(importing, bed, file, fingerprint)


if __name__ == "__main__":
    main()
