"""A metadata server for guests of several networks: ``metadata.py ADDRESS PORT``.

It answers as Amazon's does (instance metadata, version 2009-04-04), and tells guests apart by nothing but the
network in their PROXY header: the instance of network NAME is i-NAME, and its host is called NAME-guest. It
prints ``ready`` when it listens, and then a line for each request: network, method and path.
"""

from __future__ import annotations

import http.server
import sys

from tproxy.proxy_protocol import OF_NETWORK, START, decode, length

VERSION = "2009-04-04"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEWcgGSAyuEh0ptt4eqTvKjxvwxKVbXIsxi8YFE4Rgve {network}-key"
USER_DATA = """\
#cloud-config
locale: C.UTF-8
write_files:
- path: /run/told
  content: "{network}"
runcmd:
- [sh, -c, "echo {network} >/run/ran"]
"""


def tree(network: str) -> dict[str, str]:
    """Return what there is of an instance, by path; a path that ends in a slash lists what is below it."""
    return {
        "meta-data/": "hostname\ninstance-id\nlocal-hostname\npublic-keys/\n",
        "meta-data/instance-id": f"i-{network}",
        "meta-data/hostname": f"{network}-guest",
        "meta-data/local-hostname": f"{network}-guest",
        "meta-data/public-keys/": f"0={network}-key",
        "meta-data/public-keys/0/": "openssh-key",
        "meta-data/public-keys/0/openssh-key": KEY.format(network=network),
        "user-data": USER_DATA.format(network=network),
    }


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    network = ""

    def setup(self) -> None:
        super().setup()
        start = self.rfile.read(START)
        self.network = decode(start + self.rfile.read(length(start))).values.get(OF_NETWORK, "")

    def do_GET(self) -> None:
        version, _, path = self.path.strip("/").partition("/")
        slash = "/" if self.path.endswith("/") else ""
        body = tree(self.network).get(path + slash) if version == VERSION and self.network else None
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or "")))
        self.end_headers()
        self.wfile.write((body or "").encode())

    def log_request(self, code: object = "-", size: object = "-") -> None:
        print(self.network, self.command, self.path, flush=True)


def main() -> None:
    address, port = sys.argv[1:]
    with http.server.ThreadingHTTPServer((address, int(port)), Handler) as server:
        print("ready", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
