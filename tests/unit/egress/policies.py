"""A policy and callers that the tests of the egress share."""

from __future__ import annotations

from tproxy.egress.model import Caller
from tproxy.egress.policy import reader
from tproxy.egress.policy.rules import Policy

DIGEST = "sha256:" + "0" * 64

TEXT = f"""\
mode: dmz
rules:
  - networks: [build, lab]
    deny: true
    pypi: ["django<4.2", evil]
  - networks: [build]
    pypi: [requests, "django>=4"]
    deb: {{suites: [bookworm]}}
    oci: ["docker.io/library/*", "quay.io/org/app@{DIGEST}"]
    galaxy: [community.general]
    files:
      - {{url: "https://host.example/a.tgz", sha256: "{"1" * 64}"}}
    get: ["https://host.example/releases/*", "https://*.cdn.example/f?sig=*"]
  - networks: [both]
    hypervisors: [hv1]
    pypi: [requests]
  - networks: ["*"]
    pypi: [everyone]
tunnel: [{{host: pinned.example, networks: [build]}}]
"""


def parse(text: str = TEXT) -> Policy:
    return reader.parse("egress.yaml", text)


BUILD = Caller(network="build", address="10.0.0.5", port="vnet1")
LAB = Caller(network="lab", address="10.0.0.5", port="vnet2")
