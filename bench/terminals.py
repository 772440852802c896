"""Draws docs/img/{lab,status,doctor,probe}.svg (``make pictures``) from real runs in a stand-in hypervisor.

Commands run at a terminal of their own, so colours are as an operator sees them.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from tproxy.lab.hypervisor import Hypervisor

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs/img"
ENDPOINT = "10.11.12.13"
FILE = "/run/tproxy.yaml"

TPROXY = f"""\
tproxy_workers: 1
tproxy:
- {{name: packages, service_port: 80, remote_addr: {ENDPOINT}, remote_port: 8080}}
- {{name: licences, service_port: 5030, remote_addr: [{ENDPOINT}, 10.11.12.14], remote_port: 5030}}
- {{name: time, service_port: 123, remote_addr: {ENDPOINT}, remote_port: 123, protocol: udp}}
"""

# Without the fonts that readers' browsers would have to ask a server for.
_FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)

# Columns. Wider pictures cannot be read where a page scales them down; longer lines go on in the next one.
_LEAST, _MOST = 100, 124


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.terminals")
    parser.add_argument("--output", type=Path, default=IMAGES)
    folder = parser.parse_args().output
    tproxy = [sys.executable, "-m", "tproxy"]
    draw(folder / "lab.svg", [("tproxy lab", at_terminal([*tproxy, "lab"]))])
    with Hypervisor() as host:
        host.add_bridge("br0")
        guest = host.add_guest("guest", "br0")
        for port in (8080, 5030):
            host.add_endpoint(ENDPOINT, port)
        host.write(FILE, TPROXY)
        host.tproxy("hook", "up", "--bridge", "br0", "--network", "tenant7", "--config", FILE)

        def shown(*words: str) -> tuple[str, str]:
            return " ".join(["tproxy", *words]), at_terminal(host.command(*tproxy, *words))

        for port in (80, 5030):
            guest.get("169.254.16.9", port)
        draw(folder / "status.svg", [shown("status", "--verbose")])
        draw(folder / "probe.svg", [shown("probe", "br0:80")])
        host.ip("link set dev br0b nomaster")
        host.run("ip", "address", "delete", "10.11.12.14/32", "dev", "lo", check=False)
        draw(folder / "doctor.svg", [shown("doctor", "--bridge", "br0", "--config", FILE)])


def at_terminal(argv: Sequence[str]) -> str:
    """Run a command at a pseudo-terminal; return what it printed, colours included."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, _MOST, 0, 0))
    process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT)
    os.close(theirs)
    printed = b""
    try:
        while part := os.read(ours, 1 << 16):
            printed += part
    except OSError:  # EIO: the other end is closed
        pass
    os.close(ours)
    process.wait()
    return printed.decode().replace("\r\n", "\n")


def draw(path: Path, runs: Sequence[tuple[str, str]]) -> None:
    """Draw commands and what they printed."""
    lines = [
        line for command, output in runs for line in (f"\x1b[1m# {command}\x1b[0m", *output.splitlines())
    ]
    texts = [Text.from_ansi(line) for line in lines]
    width = min(max(_LEAST, *(text.cell_len for text in texts)), _MOST)
    with open(os.devnull, "w") as nowhere:
        console = Console(
            record=True, width=width, file=nowhere, force_terminal=True, color_system="truecolor"
        )
        for text in texts:
            console.print(text, overflow="fold")
        svg = console.export_svg(title=runs[0][0], code_format=_FORMAT, unique_id=path.stem)
    path.write_text(re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE))


if __name__ == "__main__":
    main()
