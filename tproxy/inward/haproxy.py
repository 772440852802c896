"""HAProxy as a process: a service of systemd with a limit of memory where there is one, otherwise its own."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from tproxy.errors import ProcessError
from tproxy.inward import files
from tproxy.inward.compile import ADMIN, CONFIGURATION, PID_FILE
from tproxy.inward.options import Options
from tproxy.inward.runtime import Runtime

UNIT = "tproxy-gateway.service"
# Renews certificates of an issuer and keeps what was counted: runs `tproxy gateway up` again.
RENEWAL, TIMER = "tproxy-gateway-renewal.service", "tproxy-gateway-renewal.timer"
UNITS = "/etc/systemd/system"

# Seconds that HAProxy may take to start or to end.
PATIENCE = 30.0


def program() -> str:
    """Return the path of HAProxy. Raises ProcessError."""
    found = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise ProcessError("HAProxy is not installed: apt install haproxy")
    return found


def has_systemd() -> bool:
    """Whether systemd runs the host."""
    return os.path.isdir("/run/systemd/system")


def check(folder: Path, wanted: dict[str, str]) -> None:
    """Have HAProxy judge files before it uses them. Raises ProcessError."""
    trial = folder / "trial"
    shutil.rmtree(trial, ignore_errors=True)
    trial.mkdir(mode=0o700)
    files.write(trial, {file: text.replace(f"{folder}/", f"{trial}/") for file, text in wanted.items()})
    done = subprocess.run(
        [program(), "-c", "-f", str(trial / CONFIGURATION)], check=False, capture_output=True, text=True
    )
    shutil.rmtree(trial, ignore_errors=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "[ALERT]" in line or "error" in line]
        raise ProcessError(f"HAProxy refuses the configuration: {' '.join((said or ['?'])[0].split())}")


def refuse_taken(options: Options) -> None:
    """Raise ProcessError if another program has a port; its name is in the text."""
    first, _, last = options.ports.partition("-")
    others = range(int(first), int(last) + 1) if last else ()
    for port in (options.http_port, options.https_port, *others):
        family = socket.AF_INET if options.address and ":" not in options.address else socket.AF_INET6
        with socket.socket(family) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((options.address, port))
            except OSError as error:
                raise ProcessError(f"port {port} cannot be had: {error.strerror}{_holder(port)}") from None


def start(folder: Path, config: str, options: Options) -> None:
    """Start HAProxy with the files that are there. Raises ProcessError."""
    if has_systemd():
        texts = units(folder, config, options)
        for name, text in texts.items():
            (Path(UNITS) / name).write_text(text)
        for command in (["daemon-reload"], *(["enable", "--now", each] for each in texts if each != RENEWAL)):
            subprocess.run(["systemctl", *command], check=True, capture_output=True)
    else:
        argv = [program(), "-W", "-D", "-f", str(folder / CONFIGURATION), "-p", str(folder / PID_FILE)]
        log = open(folder / "haproxy.log", "ab")  # noqa: SIM115 - HAProxy's, which outlives this process
        with log:
            done = subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if done.returncode:
            last = (folder / "haproxy.log").read_text(errors="replace").strip().splitlines()[-1:]
            raise ProcessError(f"HAProxy does not start: {''.join(last)}")
    admin = Runtime(str(folder / ADMIN))
    _await(lambda: admin.answers, "HAProxy does not answer")


def units(folder: Path, config: str, options: Options) -> dict[str, str]:
    """Return the texts of the units for systemd, by name."""
    tproxy = [sys.executable, "-m", "tproxy", "gateway"]
    said = options.arguments(config)
    known = {
        "@FOLDER@": str(folder),
        "@HAPROXY@": program(),
        "@COMPILE@": shlex.join([*tproxy, "compile", *said]),
        "@UP@": shlex.join([*tproxy, "up", *said]),
        "@USAGE@": shlex.join([*tproxy, "usage", "--json", f"--state={options.state}"]),
    }
    found = {}
    for name in (UNIT, RENEWAL, TIMER):
        text = (Path(__file__).parents[1] / "drivers" / "gateway" / name).read_text()
        for word, value in known.items():
            text = text.replace(word, value.replace("%", "%%"))
        found[name] = text
    return found


def reload(folder: Path) -> None:
    """Have HAProxy go on with its new configuration; listening sockets stay, and no client is refused."""
    pid = _pid(folder)
    if not pid:
        raise ProcessError("HAProxy runs, but not by `tproxy gateway up`: end it first")
    admin = Runtime(str(folder / ADMIN))
    before = admin.worker
    os.kill(pid, signal.SIGUSR2)
    _await(lambda: admin.worker not in ("", before), "HAProxy does not go on with its configuration")


def end(folder: Path) -> bool:
    """End HAProxy and its units; return whether it ran. Raises ProcessError."""
    pid = _pid(folder)
    installed = [each for each in (TIMER, RENEWAL, UNIT) if (Path(UNITS) / each).exists()]
    if has_systemd() and installed:
        subprocess.run(["systemctl", "disable", "--now", *installed], check=False, capture_output=True)
        for each in installed:
            (Path(UNITS) / each).unlink()
        subprocess.run(["systemctl", "daemon-reload"], check=False, capture_output=True)
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        _await(lambda: not psutil.pid_exists(pid), f"HAProxy (process {pid}) does not end")
    (folder / PID_FILE).unlink(missing_ok=True)
    (folder / ADMIN).unlink(missing_ok=True)
    return bool(pid)


def _holder(port: int) -> str:
    for each in psutil.net_connections("tcp"):
        if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port:
            with suppress(psutil.Error):
                return f": {psutil.Process(each.pid).name()} (process {each.pid}) listens there"
    return ""


def _pid(folder: Path) -> int:
    """HAProxy's master process; 0 for none."""
    with suppress(OSError, ValueError, psutil.Error):
        pid = int((folder / PID_FILE).read_text().split()[0])
        if psutil.Process(pid).name() == "haproxy":
            return pid
    return 0


def _await(done: Callable[[], bool], problem: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > deadline:
            raise ProcessError(problem)
        time.sleep(0.02)
