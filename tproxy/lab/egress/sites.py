"""Web sites of the lab and of tests: serves ROOT/HOST/PATH on ports 80 and 443 of some addresses.

Arguments: addresses with commas, directory, certificate with key. A file PATH.redirect holds the address of a
redirect, and a file PATH.headers holds headers as JSON. A request is a line in ROOT/requests.log: scheme,
host, method and path.
"""

from __future__ import annotations

import json
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(sys.argv[2]) if len(sys.argv) > 2 else Path()
LOCK = threading.Lock()


class Site(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        host = (self.headers["Host"] or "none").partition(":")[0]
        scheme = "https" if isinstance(self.connection, ssl.SSLSocket) else "http"
        with LOCK, (ROOT / "requests.log").open("a") as log:
            log.write(f"{scheme} {host} {self.command} {self.path}\n")
        path = ROOT / host / unquote(self.path.partition("?")[0]).lstrip("/")
        moved = path.with_name(path.name + ".redirect")
        if moved.exists():
            self._send(302, b"", Location=moved.read_text().strip())
        elif path.is_dir() and (path / "index.html").exists():
            self._send_file(path / "index.html", **{"Content-Type": "text/html"})
        elif path.is_file():
            self._send_file(path, **{"Cache-Control": "max-age=3600"})
        else:
            self._send(404, b"not here\n")

    do_HEAD = do_POST = do_GET

    def _send_file(self, path: Path, **headers: str) -> None:
        more = path.with_name(path.name + ".headers")
        if more.exists():
            headers = json.loads(more.read_text())
        self._send(200, path.read_bytes(), **headers)

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def main() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[3])
    servers = []
    for address in sys.argv[1].split(","):
        servers.append(ThreadingHTTPServer((address, 80), Site))
        secure = ThreadingHTTPServer((address, 443), Site)
        secure.socket = context.wrap_socket(secure.socket, server_side=True, do_handshake_on_connect=False)
        servers.append(secure)
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
