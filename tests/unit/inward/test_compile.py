"""The gateway's files for HAProxy, and its unit for systemd."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tproxy.config.routes import RouteEntry
from tproxy.inward import compile as compiled
from tproxy.inward import gateway
from tproxy.inward.compile import Options

ENTRIES = [
    RouteEntry(1, "web", "n", 80, "10.0.0.5", domain="Web.example.com", port_tls=443),
    RouteEntry(2, "shop", "n", 80, "10.0.0.6", domain="shop.example.com", tls="terminate"),
    RouteEntry(3, "all", "n", 80, "10.0.0.7", domain="*.example.org"),
    RouteEntry(4, "ssh", "n", 22, "10.0.0.5", gateway_port=10022),
    RouteEntry(5, "old", "n", 80, "10.0.0.5", domain="old.example.com", expires=1),
]


def test_maps_lead_from_names_to_ids() -> None:
    found = {file: text for file, text in compiled.maps(ENTRIES, 2).items() if text}
    assert found == {
        "passthrough.map": "web.example.com web/tls\n",
        "passthrough.wild.map": ".example.org all\n",
        "terminate.map": "shop.example.com shop\n",
        "host.map": "shop.example.com shop\nweb.example.com web\n",
        "host.wild.map": ".example.org all\n",
        "ports.map": "10022 ssh\n",
    }


@pytest.mark.parametrize(
    "options", [Options(), Options(ports="10000-10009", address="127.0.0.1", http_port=8080)]
)
def test_haproxy_takes_the_configuration(tmp_path: Path, options: Options) -> None:
    program = shutil.which("haproxy", path="/usr/sbin:/usr/bin")
    if program is None:
        pytest.skip("needs haproxy")
    for file, text in compiled.maps(ENTRIES, 2).items():
        (tmp_path / file).write_text(text)
    text = compiled.configuration(options._replace(most=100, user="root"), str(tmp_path), "/", "test")
    (tmp_path / "haproxy.cfg").write_text(text)
    done = subprocess.run(
        [program, "-c", "-f", str(tmp_path / "haproxy.cfg")], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


def test_the_unit_compiles_with_the_options_that_up_had(tmp_path: Path) -> None:
    text = gateway.unit("/usr/sbin/haproxy", tmp_path, "/etc/tproxy/100%.yaml", Options(ports="10000-10009"))
    assert " gateway compile --config=/etc/tproxy/100%%.yaml --ports=10000-10009\n" in text
    assert "@" not in text
    assert "MemoryMax=" in text
