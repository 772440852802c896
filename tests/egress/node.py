"""An egress node for tests: a network namespace with squid, web sites on public addresses, and callers.

No packet leaves the namespace. The sites have addresses of the internet, because inner ones are refused. With
``hypervisor`` the node is a whole stand-in host, to which tests add bridges and guests.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tproxy.egress.layout import Layout
from tproxy.egress.policy import reader
from tproxy.egress.service import preparation
from tproxy.egress.squid.authority import Authority
from tproxy.egress.squid.compiler import Surroundings
from tproxy.lab.hypervisor import Hypervisor

PROGRAMS = Path(__file__).with_name("programs")
PATIENCE = float(os.environ.get("TPROXY_PATIENCE", "20"))

SITES = "93.184.215.14"  # the address of the web sites, on the loopback link of the namespace
REGISTRY = "93.184.215.15"  # where a test may run a registry
INNER = "10.9.9.9"  # another address of the web sites, which is private
PORTS = ("127.0.0.1", SITES, INNER, "169.254.16.9")

HOSTS = {
    "pypi.org": SITES,
    "files.pythonhosted.org": SITES,
    "host.example": SITES,
    "other.example": SITES,
    "pinned.example": SITES,
    "inner.example": INNER,
    "loop.example": "127.0.0.1",
    "service.example": "169.254.16.9",
    "deb.debian.org": SITES,
    "registry-1.docker.io": REGISTRY,
    "galaxy.ansible.com": SITES,
}


class Node:
    """One node. ``policy`` is the text of its egress.yaml."""

    host: Hypervisor  # only of a node with ``hypervisor``
    up: subprocess.Popen[str]  # `tproxy egress up`, where a test has started it

    def __init__(
        self, policy: str, *, mirror: bool = False, squid: bool = True, hypervisor: bool = False
    ) -> None:
        self._with_squid, self._with_hypervisor = squid, hypervisor
        self._stack = ExitStack()
        self.root = Path(tempfile.mkdtemp(prefix="tproxy-egress-", dir="/tmp"))
        self.root.chmod(0o755)
        self._stack.callback(shutil.rmtree, self.root, ignore_errors=True)
        self.layout = Layout.below(self.root)
        self.layout.etc.mkdir()
        self.policy = self.layout.policy
        self.sites = self.root / "sites"
        self.sites.mkdir()
        self._certificate()
        # The sites are on the node itself, so their addresses have to be named.
        site = f"upstream_ca: {self.root}/sites-ca.pem\ninner: [{SITES}, {REGISTRY}]\n"
        self.policy.write_text(site + policy)
        hosts = self.root / "hosts"
        hosts.write_text("".join(f"{address} {host}\n" for host, address in HOSTS.items()))
        self.surroundings = Surroundings(
            self.layout, mirror=mirror, hosts_file=str(hosts), nameservers=("127.0.0.1",)
        )
        self._next_port = 20000
        self.prepared: list[str] = []

    def __enter__(self) -> Node:
        try:
            self._begin()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _begin(self) -> None:
        addresses = [SITES, INNER, "169.254.16.9"]
        if self._with_hypervisor:
            # Its end ends all programs of the node, before the node's files are removed.
            self.host = self._stack.enter_context(Hypervisor())
            self.run("mount", "--bind", f"{self.root}/hosts", "/etc/hosts")
            addresses.remove("169.254.16.9")  # which is that of the services here
        else:
            self._holder = subprocess.Popen(["unshare", "-n", "sleep", "infinity"])
            self._stack.callback(self._end, self._holder)
            self._wait_for_namespace()
            self.run("ip", "link", "set", "lo", "up")
        for address in (*addresses, REGISTRY):
            self.run("ip", "address", "add", f"{address}/32", "dev", "lo")
        if self._with_squid:  # where the whole node runs, the front has the ports of this one
            addresses.append("127.0.0.1")
        sites = (",".join(addresses), str(self.sites), str(self.root / "site.pem"))
        self.start(sys.executable, "-m", "tproxy.lab.egress.sites", *sites)
        if self._with_squid:
            self.start_squid()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def write_policy(self, text: str) -> None:
        """Replace the policy at once: half a policy is one too, and would be taken for a change."""
        new = self.policy.with_suffix(".new")
        new.write_text(text)
        os.replace(new, self.policy)

    def start_squid(self) -> None:
        self.prepared = preparation.prepare(reader.load(self.policy), self.surroundings)
        self.squid = self.start(*preparation.squid_command(self.surroundings), ready="")
        port = reader.load(self.policy).listen.proxy[0]
        self.wait_for(lambda: self.listens(port), "squid listens")

    def restart_squid(self) -> None:
        self.squid.send_signal(signal.SIGINT)
        self.squid.wait(PATIENCE)
        self.start_squid()

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a program in the namespace, which ends with the node."""
        child = subprocess.Popen(self._inside(*command), text=True, start_new_session=True, **options)
        self._stack.callback(self._end, child)
        return child

    def start(self, *command: str, ready: str = "ready") -> subprocess.Popen[str]:
        """Start a program in the namespace; wait for its line ``ready``."""
        child = subprocess.Popen(
            self._inside(*command),
            stdout=subprocess.PIPE if ready else None,
            text=True,
            start_new_session=True,
        )
        self._stack.callback(self._end, child)
        if ready:
            assert child.stdout is not None
            assert child.stdout.readline().strip() == ready, command
        return child

    def run(self, *command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a program in the namespace to its end."""
        done = subprocess.run(
            self._inside(*command),
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, **environment},
            timeout=PATIENCE * 3,
            check=False,
        )
        assert not check or done.returncode == 0, (command, done.stdout, done.stderr)
        return done

    def caller(
        self, address: str = "10.0.0.5", *, port: int = 3128, bridge_port: str = "", **values: str
    ) -> str:
        """Return the address of a proxy at which everyone is this caller: the daemon's part.

        ``port`` is the TCP port of the node, ``bridge_port`` the caller's ``port``.
        """
        if bridge_port:
            values["port"] = bridge_port
        self._next_port += 1
        listen = self._next_port
        words = [f"{name}={text}" for name, text in values.items()]
        self.start(sys.executable, str(PROGRAMS / "with_header.py"), str(listen), str(port), address, *words)
        return f"http://127.0.0.1:{listen}"

    def curl(self, proxy: str, url: str, *options: str) -> tuple[int, str]:
        """Return the status and the body of what curl gets; 0 when there was no answer."""
        done = self.run(
            *(
                "curl",
                "-sS",
                "--path-as-is",
                "-m",
                str(int(PATIENCE)),
                "-o",
                "-",
                "-w",
                "\n%{http_code} %{http_connect}",
            ),
            *("--proxy", proxy, "--cacert", str(self.trusted), *options, url),
            check=False,
        )
        body, _, codes = done.stdout.rpartition("\n")
        status, connect = map(int, codes.split())
        return status or (connect if connect >= 300 else 0), body + done.stderr

    def popen_curl(self, proxy: str, url: str, *options: str) -> subprocess.Popen[str]:
        """Start a download. Its output is status and size."""
        command = ("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code} %{size_download}", "--proxy", proxy)
        child = subprocess.Popen(
            self._inside(*command, "--cacert", str(self.trusted), *options, url),
            stdout=subprocess.PIPE,
            text=True,
        )
        self._stack.callback(self._end, child)
        return child

    def pip_download(self, proxy: str, requirement: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Download with a real pip into a directory of its own."""
        to = tempfile.mkdtemp(dir=self.root)
        command = (sys.executable, "-m", "pip", "--isolated", "download", "--no-cache-dir", "--no-deps")
        quick = ("--retries", "0", "--disable-pip-version-check", "--index-url", "https://pypi.org/simple/")
        ours = {"REQUESTS_CA_BUNDLE": str(self.trusted), "SSL_CERT_FILE": str(self.trusted)}
        return self.run(
            *command, *quick, "--proxy", proxy, "-d", to, requirement, *options, check=False, **ours
        )

    @property
    def trusted(self) -> Path:
        return Authority(self.layout.authority).trusted

    def site(self, host: str, path: str, body: bytes | str, headers: Mapping[str, str] | None = None) -> None:
        """Offer this content. A path that ends in "/" is a directory, which may have other paths in it."""
        file = self.sites / host / path.lstrip("/")
        if path.endswith("/"):
            file /= "index.html"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(body.encode() if isinstance(body, str) else body)
        if headers:
            file.with_name(file.name + ".headers").write_text(json.dumps(dict(headers)))

    def requests(self, host: str = "") -> list[str]:
        """Return what the sites were asked for."""
        log = self.sites / "requests.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line for line in lines if not host or line.split()[1] == host]

    def access_log(self) -> list[str]:
        log = self.layout.access_log
        return log.read_text().splitlines() if log.exists() else []

    def listens(self, port: int) -> bool:
        return bool(self.run("ss", "-Hltn", f"src 127.0.0.1:{port}").stdout)

    def wait_for(self, condition: object, what: str) -> None:
        assert callable(condition)
        until = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < until, what
            time.sleep(0.05)

    def _inside(self, *command: str) -> list[str]:
        if self._with_hypervisor:
            return self.host.command(*command)
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net", *command]

    def _wait_for_namespace(self) -> None:
        own = os.readlink("/proc/self/ns/net")
        self.wait_for(lambda: os.readlink(f"/proc/{self._holder.pid}/ns/net") != own, "a namespace")

    @staticmethod
    def _end(child: subprocess.Popen[Any]) -> None:
        try:
            # squid would end its downloads first at SIGTERM.
            is_squid = isinstance(child.args, list) and "squid" in child.args
            child.send_signal(signal.SIGINT if is_squid else signal.SIGTERM)
            child.wait(15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stdout:
            child.stdout.close()

    def _certificate(self) -> None:
        """Make one certificate for all sites, signed by an authority that squid is told to trust."""
        now = datetime.now(timezone.utc)
        key, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of the sites")])
        builder = x509.CertificateBuilder().issuer_name(issuer).not_valid_before(now - timedelta(days=1))
        builder = builder.not_valid_after(now + timedelta(days=2))
        root = (
            builder.subject_name(issuer)
            .public_key(key.public_key())
            .serial_number(1)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        names = x509.SubjectAlternativeName([x509.DNSName(host) for host in HOSTS])
        site = (
            builder.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sites")]))
            .public_key(own.public_key())
            .serial_number(2)
            .add_extension(names, critical=False)
            .sign(key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        (self.root / "sites-ca.pem").write_bytes(root.public_bytes(pem))
        private = own.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (self.root / "site.pem").write_bytes(private + site.public_bytes(pem))
