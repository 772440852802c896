"""The HTTP server of the scripts for clients, and of the authority's certificate. It has nothing secret.

Paths are /setup, /setup.yaml (cloud-config), /check, /ca.pem and /site-key.asc. A guest asks it without TLS:
the operator compares the fingerprint, which the start-up log of the node shows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tproxy.egress.clients import scripts

_PATIENCE = 10.0  # seconds for a request
_MOST_AT_ONCE = 32  # threads

_HELP = """\
tproxy egress

  curl -s http://HOST:PORT/setup | sh                         set this machine up
  curl -s http://HOST:PORT/setup?units=docker,containerd | sh   only these systemd units
  curl -s http://HOST:PORT/setup | sh -s -- --undo            remove it again
  curl -s http://HOST:PORT/check | sh                         what is still wrong
  /setup.yaml                                                 a cloud-config
  /ca.pem                                                     the authority's certificates
  /site-key.asc                                               the key of sealed Debian suites
"""


class Server:
    """Serves until it is closed. ``proxy`` is what clients use when they do not say another one."""

    def __init__(self, address: str, port: int, trusted: Path, site_key: Path, proxy: str) -> None:
        running = threading.BoundedSemaphore(_MOST_AT_ONCE)

        class Bounded(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def process_request(self, request: object, client_address: object) -> None:
                running.acquire()
                super().process_request(request, client_address)  # type: ignore[arg-type]

            def process_request_thread(self, request: object, client_address: object) -> None:
                try:
                    super().process_request_thread(request, client_address)  # type: ignore[arg-type]
                finally:
                    running.release()

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a guest that goes away

        self._server = Bounded((address, port), _handler(trusted, site_key, proxy))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True, name="setup")
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _text_of(path: Path) -> str:
    """Return a file's text; "" while there is no file."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def page(
    path: str, certificates: Callable[[], str], proxy: str, site_key: Callable[[], str] = str
) -> tuple[int, str, str]:
    """Return status, content type and text of the answer to a path with its query."""
    parts = urlsplit(path)
    asked = {name: texts[-1] for name, texts in parse_qs(parts.query).items()}
    through, units = asked.get("proxy", proxy), asked.get("units", "")
    try:
        match parts.path:
            case "/setup":
                return 200, "text/x-shellscript", scripts.setup(certificates(), through, units, site_key())
            case "/setup.yaml":
                found = scripts.cloud_config(certificates(), through, units, site_key())
                return 200, "text/cloud-config", found
            case "/check":
                return 200, "text/x-shellscript", scripts.check(certificates(), through, units, site_key())
            case "/ca.pem":
                return 200, "application/x-pem-file", certificates()
            case "/site-key.asc" if key := site_key():
                return 200, "application/pgp-keys", key
            case "/":
                return 200, "text/plain", _HELP
    except scripts.BadQuestion as error:
        return 400, "text/plain", f"{error}\n"
    except OSError:
        return 503, "text/plain", "there is no authority yet\n"
    return (
        404,
        "text/plain",
        "there are / /setup /setup.yaml /check /ca.pem, and /site-key.asc on sealed sites\n",
    )


def _handler(trusted: Path, site_key: Path, proxy: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _PATIENCE
        server_version, sys_version = "tproxy", ""

        def do_GET(self) -> None:
            status, kind, text = page(self.path, trusted.read_text, proxy, partial(_text_of, site_key))
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    return Handler
