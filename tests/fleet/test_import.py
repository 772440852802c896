"""Services of a TCP router in a real redis become routes, and are followed."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.netns.waiting import eventually
from tproxy.config import reader
from tproxy.lab.hypervisor import Hypervisor

URL = "redis://127.0.0.1:6379"


class Router:
    """A redis with the keys of a TCP router, and the file that the import writes."""

    def __init__(self, host: Hypervisor, folder: Path) -> None:
        self.host = host
        self.output = folder / "imported.yaml"
        redis = ("redis-server", "--bind", "127.0.0.1", "--port", "6379", "--save", "", "--dir", "/run")
        host.popen(*redis, stdout=subprocess.DEVNULL)
        for _ in eventually():
            if host.run("redis-cli", "ping", check=False).stdout == "PONG\n":
                return

    def put(self, name: str, service: dict[str, Any], key: str = "/tcprouter/service/{}") -> None:
        key = key.format(name)
        value = base64.b64encode(json.dumps(service).encode()).decode()
        record = json.dumps({"Key": key, "Value": value, "LastIndex": 7})
        self.host.run("redis-cli", "set", key, record)

    def routes(self) -> dict[str, dict[str, Any]]:
        found = yaml.safe_load(self.output.read_text())["tproxy_routes"]
        return {each["domain"]: each for each in found}

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = ("fleet", "import", URL, "--network", "blue", "--output", str(self.output))
        return self.host.tproxy(*command, *arguments, check=check)


@pytest.fixture
def router(real_kernel: None, tmp_path: Path) -> Iterator[Router]:
    with Hypervisor() as host:
        yield Router(host, tmp_path)


def test_services_become_routes_that_the_configuration_takes(router: Router) -> None:
    router.put("www.example.com", {"addr": "10.0.0.5", "tlsport": 443, "httpport": 80, "clientsecret": ""})
    router.put("one.example.com", {"addr": "10.0.0.6:8443"}, key="tcprouter/service/{}")
    router.put("tunnel.example.com", {"clientsecret": "s3cret", "addr": ""})
    router.put("bad.example.com", {"addr": "not.an.address", "httpport": 80})
    router.host.run("redis-cli", "set", "/tcprouter/service/broken.example.com", "no JSON")
    router.host.run("redis-cli", "set", "other", "x")
    done = router.run("--owner", "imported", check=False)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert [line.split(": ", 3)[2] for line in lines] == [
        "key /tcprouter/service/bad.example.com",
        "key /tcprouter/service/broken.example.com",
        "key /tcprouter/service/tunnel.example.com",
    ]
    assert "behind a tunnel" in lines[2]
    assert "s3cret" not in done.stderr + router.output.read_text()
    read = reader.load(router.output, thorough=True)
    assert read.warnings == ()
    assert [(each.id, each.guest_addr, each.port, each.port_tls) for each in read.routes] == [
        ("one.example.com", "10.0.0.6", 8443, 0),
        ("www.example.com", "10.0.0.5", 80, 443),
    ]


def test_changes_are_followed_and_a_redis_that_fails_or_lost_everything_changes_nothing(
    router: Router,
) -> None:
    router.put("a.example.com", {"addr": "10.0.0.5", "httpport": 80})
    router.put("b.example.com", {"addr": "10.0.0.6", "httpport": 80})
    follower = router.host.popen(
        *(sys.executable, "-m", "tproxy", "fleet", "import", URL, "--network", "blue"),
        *("--output", str(router.output), "--follow", "--interval", "0.2"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert follower.stderr is not None

    def eventually_routes(*wanted: str) -> None:
        for _ in eventually():
            if router.output.exists() and [*router.routes()] == [*wanted]:
                return

    eventually_routes("a.example.com", "b.example.com")
    router.put("c.example.com", {"addr": "10.0.0.7", "httpport": 80})
    router.host.run("redis-cli", "del", "/tcprouter/service/b.example.com")
    eventually_routes("a.example.com", "c.example.com")
    router.host.run("redis-cli", "set", "/tcprouter/service/a.example.com", "damaged")
    assert "it is no JSON" in follower.stderr.readline()
    router.host.run("redis-cli", "flushall")
    assert "nothing is changed: --allow-empty" in follower.stderr.readline()
    router.host.run("redis-cli", "shutdown", "nosave", check=False)
    assert "Connection refused; nothing is changed" in follower.stderr.readline()
    assert [*router.routes()] == ["a.example.com", "c.example.com"]
    follower.kill()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis://x:password@127.0.0.1", "--password-file FILE"),
        ("http://127.0.0.1", "is not redis://HOST[:PORT][/DATABASE]"),
        ("redis://127.0.0.1:1", "Connection refused"),
    ],
)
def test_what_cannot_be_read_is_one_line(router: Router, url: str, why: str) -> None:
    done = router.host.tproxy("fleet", "import", url, "--network", "blue", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert why in done.stderr
