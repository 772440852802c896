"""Starts, changes and ends the gateway of this host: HAProxy with the files that ``compile`` makes.

Files are in a directory of /run, since all of them are made anew from the configuration file. Each is written
before HAProxy hears of it, so a restart finds what was said last. Where systemd runs the host, HAProxy is a
service with a limit of memory; otherwise it is started as a process of its own.
"""

from __future__ import annotations

import grp
import os
import resource
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

from tproxy.config.services import Config
from tproxy.errors import ProcessError
from tproxy.inward import compile as compiled
from tproxy.inward.compile import ADMIN, CERTIFICATES, CONFIGURATION, PID_FILE, Options
from tproxy.inward.runtime import Runtime
from tproxy.kernel import netns
from tproxy.process import inward_socket

ROOT = "/run/tproxy-gateway"
UNIT = "tproxy-gateway.service"
UNITS = "/etc/systemd/system"

# Seconds that HAProxy may take to start or to end.
PATIENCE = 30.0


def directory() -> Path:
    """Return the directory of this host's gateway."""
    return Path(ROOT) / str(netns.current().inode)


def up(config: Config, options: Options) -> list[str]:
    """Have the gateway serve the routes of the file; return what was done, in words.

    Does nothing where all is in order. Raises TproxyError: then a gateway that runs goes on as before.
    """
    program = _program()
    if not _systemd():  # the unit has a limit of its own
        options = options._replace(most=min(options.most, _most_connections()))
    folder, wanted, certificates = _compiled(config, options)
    before = {each.name: each.read_text() for each in folder.iterdir() if each.name in wanted}
    changed = compiled.changes(before, wanted)
    admin = Runtime(str(folder / ADMIN))
    running = admin.answers
    _admit(options.user)
    if not running or CONFIGURATION in changed:
        _check(program, folder, wanted)
        if not running:
            _refuse_taken(options)
        _write(folder, wanted)
        _write_copies(folder, certificates)
        if running:
            _reload(folder)
        else:
            _start(program, folder, config.path, options)
        return ["HAProxy goes on with another configuration" if running else "HAProxy started"]
    done = []
    for file in sorted(changed.keys() - {CERTIFICATES}):
        _write(folder, {file: changed[file]})
        admin.set_map(str(folder / file), changed[file])
        done.append(f"map {file}: {changed[file].count(chr(10))} names")
    return done + _change_certificates(admin, folder, certificates, wanted[CERTIFICATES])


def compile_files(config: Config, options: Options) -> None:
    """Write the files that HAProxy reads when it starts: after a boot there are none. Raises TproxyError."""
    folder, wanted, certificates = _compiled(config, options)
    _admit(options.user)
    _check(_program(), folder, wanted)
    _write(folder, wanted)
    _write_copies(folder, certificates)


def _compiled(config: Config, options: Options) -> tuple[Path, dict[str, str], dict[str, str]]:
    """Return the gateway's directory, its files by name, and the certificates by path."""
    folder = directory()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = f"tproxy-gateway-{netns.current().inode}"
    wanted = compiled.maps(config.routes, time.time())
    wanted[CONFIGURATION] = compiled.configuration(options, str(folder), inward_socket.directory(), name)
    certificates = _certificates(options)
    wanted[CERTIFICATES] = compiled.certificates(certificates)
    return folder, wanted, certificates


def _program() -> str:
    found = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise ProcessError("HAProxy is not installed: apt install haproxy")
    return found


def unit(program: str, folder: Path, config: str, options: Options) -> str:
    """Return the text of HAProxy's unit for systemd."""
    compiling = [sys.executable, "-m", "tproxy", "gateway", "compile", *options.arguments(config)]
    known = {"@FOLDER@": str(folder), "@HAPROXY@": program, "@COMPILE@": shlex.join(compiling)}
    text = (Path(__file__).parents[1] / "drivers" / "gateway" / UNIT).read_text()
    for word, value in known.items():
        text = text.replace(word, value.replace("%", "%%"))
    return text


def down(*, purge: bool) -> bool:
    """End the gateway; ``purge`` also removes its files. Return whether it ran."""
    folder = directory()
    pid = _pid(folder)
    installed = Path(UNITS) / UNIT
    if _systemd() and installed.exists():
        subprocess.run(["systemctl", "disable", "--now", UNIT], check=False, capture_output=True)
        installed.unlink()
        subprocess.run(["systemctl", "daemon-reload"], check=False, capture_output=True)
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        _await(lambda: not psutil.pid_exists(pid), f"HAProxy (process {pid}) does not end")
    (folder / PID_FILE).unlink(missing_ok=True)
    (folder / ADMIN).unlink(missing_ok=True)
    if purge:
        shutil.rmtree(folder, ignore_errors=True)
        if os.path.isdir(inward_socket.directory()):
            inward_socket.admit(0)
    return bool(pid)


def _certificates(options: Options) -> dict[str, str]:
    """The certificates by path. Raises ProcessError."""
    if not options.certificates:
        return {}
    found = {str(each): each.read_text() for each in sorted(Path(options.certificates).glob("*.pem"))}
    if not found:
        raise ProcessError(f"{options.certificates} has no certificate (*.pem, with its key)")
    return found


def _change_certificates(
    admin: Runtime, folder: Path, certificates: dict[str, str], listed: str
) -> list[str]:
    """Use the certificates as they are now; those that HAProxy has are remembered by copies."""
    copies = folder / "certificates"
    in_list = str(folder / CERTIFICATES)
    before = (folder / CERTIFICATES).read_text().split()
    done = []
    for path, text in certificates.items():
        copy = copies / path.replace("/", "%")
        new = path not in before
        if new or not copy.exists() or copy.read_text() != text:
            admin.set_certificate(path, text, new=new, in_list=in_list)
            done.append(f"certificate {path}")
    for path in before:
        if path not in certificates:
            admin.drop_certificate(path, in_list)
            done.append(f"certificate {path} is gone")
    if done:
        _write(folder, {CERTIFICATES: listed})
        _write_copies(folder, certificates)
    return done


def _write_copies(folder: Path, certificates: dict[str, str]) -> None:
    copies = folder / "certificates"
    shutil.rmtree(copies, ignore_errors=True)
    copies.mkdir(mode=0o700)
    _write(copies, {path.replace("/", "%"): text for path, text in certificates.items()})


def _admit(user: str) -> None:
    """Let the gateway's group connect to in.sock. Raises ProcessError."""
    try:
        group = grp.getgrnam(user).gr_gid
    except KeyError:
        raise ProcessError(f"there is no group {user}") from None
    inward_socket.admit(group)


def _check(program: str, folder: Path, wanted: dict[str, str]) -> None:
    """Have HAProxy judge files before it uses them. Raises ProcessError."""
    trial = folder / "trial"
    shutil.rmtree(trial, ignore_errors=True)
    trial.mkdir(mode=0o700)
    texts = {file: text.replace(f"{folder}/", f"{trial}/") for file, text in wanted.items()}
    _write(trial, texts)
    done = subprocess.run(
        [program, "-c", "-f", str(trial / CONFIGURATION)], check=False, capture_output=True, text=True
    )
    shutil.rmtree(trial, ignore_errors=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "[ALERT]" in line or "error" in line]
        raise ProcessError(f"HAProxy refuses the configuration: {' '.join((said or ['?'])[0].split())}")


def _refuse_taken(options: Options) -> None:
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


def _holder(port: int) -> str:
    for each in psutil.net_connections("tcp"):
        if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port:
            with suppress(psutil.Error):
                return f": {psutil.Process(each.pid).name()} (process {each.pid}) listens there"
    return ""


def _most_connections() -> int:
    """How many connections the limit of descriptors allows: each takes two, and HAProxy some more."""
    return max((resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 200) // 2, 100)


def _systemd() -> bool:
    return os.path.isdir("/run/systemd/system")


def _start(program: str, folder: Path, config: str, options: Options) -> None:
    if _systemd():
        (Path(UNITS) / UNIT).write_text(unit(program, folder, config, options))
        for command in (["daemon-reload"], ["enable", "--now", UNIT]):
            subprocess.run(["systemctl", *command], check=True, capture_output=True)
    else:
        argv = [program, "-W", "-D", "-f", str(folder / CONFIGURATION), "-p", str(folder / PID_FILE)]
        log = open(folder / "haproxy.log", "ab")  # noqa: SIM115 - HAProxy's, which outlives this process
        with log:
            done = subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if done.returncode:
            last = (folder / "haproxy.log").read_text(errors="replace").strip().splitlines()[-1:]
            raise ProcessError(f"HAProxy does not start: {''.join(last)}")
    admin = Runtime(str(folder / ADMIN))
    _await(lambda: admin.answers, "HAProxy does not answer")


def _reload(folder: Path) -> None:
    """Have HAProxy go on with its new configuration; listening sockets stay, and no client is refused."""
    pid = _pid(folder)
    if not pid:
        raise ProcessError("HAProxy runs, but not by `tproxy gateway up`: end it first")
    admin = Runtime(str(folder / ADMIN))
    before = _worker(admin)
    os.kill(pid, signal.SIGUSR2)
    _await(lambda: _worker(admin) not in ("", before), "HAProxy does not go on with its configuration")


def _worker(admin: Runtime) -> str:
    """The process id of the worker that answers; "" while none does."""
    try:
        lines = admin.ask("show info").splitlines()
    except ProcessError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("Pid:")), "")


def _pid(folder: Path) -> int:
    """HAProxy's master process; 0 for none."""
    with suppress(OSError, ValueError, psutil.Error):
        pid = int((folder / PID_FILE).read_text().split()[0])
        if psutil.Process(pid).name() == "haproxy":
            return pid
    return 0


def _write(folder: Path, texts: dict[str, str]) -> None:
    for file, text in texts.items():
        new = folder / f"{file}.new"
        new.write_text(text)
        new.chmod(0o600)
        new.rename(folder / file)


def _await(done: Callable[[], bool], problem: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > deadline:
            raise ProcessError(problem)
        time.sleep(0.02)
