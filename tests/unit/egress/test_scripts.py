"""What a client's question may put into the scripts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tproxy.egress.clients import server

CLOUD_INIT = Path(__file__).parents[3] / "build/cloud-init"

PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


KEY = "-----BEGIN PGP PUBLIC KEY BLOCK-----\nBBBB\n-----END PGP PUBLIC KEY BLOCK-----\n"


def page(path: str, site_key: str = "") -> tuple[int, str]:
    status, _, text = server.page(path, lambda: PEM, "169.254.16.9:3128", lambda: site_key)
    return status, text


@pytest.mark.parametrize(
    "path", ["/setup", "/check", "/setup?units=docker,containerd", "/setup?proxy=node.example:3129"]
)
def test_scripts_are_valid_shell(path: str) -> None:
    status, text = page(path)
    assert status == 200
    assert "@" not in text.replace("docker@", "")
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize(
    "query", ["units=$(id)", "units=a%0ab", "units=a;b", "proxy=x", "proxy=a:1%22", "proxy=$(id):1"]
)
def test_a_question_cannot_put_commands_into_a_script(query: str) -> None:
    for path in ("/setup", "/setup.yaml"):
        assert page(f"{path}?{query}")[0] == 400


def test_a_sealed_site_gives_its_key_to_apt() -> None:
    assert KEY.strip() in page("/setup", KEY)[1]
    assert KEY.strip() in page("/check", KEY)[1]
    assert page("/site-key.asc", KEY) == (200, KEY)
    assert page("/site-key.asc")[0] == 404
    assert "PGP" not in page("/setup")[1]


def test_the_cloud_config_holds_the_same_script() -> None:
    found = yaml.safe_load(page("/setup.yaml")[1])
    assert found["write_files"][0]["content"].rstrip() == page("/setup")[1].rstrip()


def test_cloud_init_finds_the_cloud_config_valid(tmp_path: Path) -> None:
    """By the schema of Debian's cloud-init."""
    if not CLOUD_INIT.exists():
        reason = "needs cloud-init, which .ci/setup unpacks"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    command = ("/usr/bin/python3", "-m", "cloudinit.cmd.main", "schema", "--config-file")
    environment = {**os.environ, "PYTHONPATH": str(CLOUD_INIT / "usr/lib/python3/dist-packages")}
    text, file = page("/setup.yaml")[1], tmp_path / "config.yaml"
    for content, code in ((text, 0), (text.replace("permissions:", "permission:"), 1)):
        file.write_text(content)
        done = subprocess.run(
            [*command, str(file)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr


def test_other_paths_are_not_there() -> None:
    assert page("/../etc/passwd")[0] == 404
