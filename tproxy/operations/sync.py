"""One configuration file to many hypervisors, over the system's ssh.

Theory of operation. Each host gets one ssh session, with the file on its standard input and a small
shell script as its command. The script tells on standard output which step it is at, so whatever
ends it, a lost connection included, is put down to a step. Until the new file has been checked, by
the host's own tproxy and with the host's own name server, the host's file is not touched; then it is
replaced by rename(2), so that a hook reads the old one or the new one, never half of one.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from tproxy.errors import ConfigError

# Whoever names others wins: ssh takes the first value that it is given. BatchMode because nobody can
# answer several hosts' questions for passwords at once.
_SSH_OPTIONS = (
    "BatchMode=yes",
    "LogLevel=ERROR",  # no notes on new hosts' keys among the reasons
    "ConnectTimeout=10",
    "ServerAliveInterval=10",
    "ServerAliveCountMax=3",
)

# For a host that is reached and then does not come to an end, such as one whose disk hangs (seconds).
PATIENCE = 300.0

_SSH_FAILED = 255  # of ssh itself, ssh(1)

FAILED = "failed"

# POSIX shell and coreutils. The temporary file is beside the target: rename(2) needs one file system.
_SCRIPT = """
echo tproxy-sync begins >&2
set -eu
tproxy=$1 target=$(realpath -m -- "$2") sum=$3 dry_run=$4
sum_of() { sha256sum <"$1" | cut -d ' ' -f 1; }

echo at find
command -v -- "$tproxy" >/dev/null
echo at copy
directory=$(dirname -- "$target")
[ -d "$directory" ] || [ "$dry_run" ] || mkdir -p -- "$directory"
[ -d "$directory" ] || directory=/tmp
temp=$(mktemp -- "$directory/.tproxy-sync.XXXXXX")
trap 'rm -f -- "$temp"' EXIT
trap 'exit 1' HUP INT TERM
echo "temp $temp"
cat >"$temp"
[ "$(sum_of "$temp")" = "$sum" ]
echo at check
"$tproxy" check -- "$temp" >/dev/null
if [ -e "$target" ] && cmp -s -- "$temp" "$target"; then echo same; fi
[ -z "$dry_run" ] || exit 0
echo at replace
if [ -e "$target" ]; then
    chown --reference="$target" -- "$temp"
    chmod --reference="$target" -- "$temp"
else
    chmod 644 -- "$temp"
fi
sync -- "$temp"
mv -fT -- "$temp" "$target"  # a target that is a directory is none to move it into
sync -- "$directory"
echo at refresh
refreshed=$("$tproxy" refresh)
echo "refreshed $refreshed"
echo at verify
echo "sum $(sum_of "$target")"
"""

# What comes before it is of the host's shell, whose start-up files may complain of anything.
_BEGIN = "tproxy-sync begins\n"

_STEPS = {
    "": "no answer",
    "find": "tproxy is not installed there, or not in the PATH of ssh sessions",
    "copy": "cannot copy",
    "check": "check failed, the old file stays",
    "replace": "cannot replace the file",
    "refresh": "the file is in place, but refresh failed",
    "verify": "cannot verify the file",
}

# What ssh(1) prints when it cannot get a session, and what an operator would call it.
_SSH_REASONS = (
    (r"Permission denied|Too many authentication failures", "authentication failed"),
    (r"Host key verification failed|IDENTIFICATION HAS CHANGED", "host key not known or changed"),
    (r"Could not resolve hostname", "unreachable: the name does not resolve"),
    (r"Connection refused", "unreachable: connection refused"),
    (r"timed out|Timeout", "unreachable: timeout"),
    (r"No route to host|Network is unreachable", "unreachable: no route"),
)


class Plan(NamedTuple):
    """What every host gets."""

    content: bytes
    path: str  # on the hosts
    ssh: Sequence[str] = ("ssh",)
    command: str = "tproxy"  # on the hosts
    sudo: bool = False
    dry_run: bool = False

    @property
    def sum(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


class Result(NamedTuple):
    """What became of one host."""

    host: str
    result: str
    detail: str = ""

    @property
    def failed(self) -> bool:
        return self.result == FAILED


def hosts_in(path: Path) -> list[str]:
    """The hosts of a file, one a line; what follows a # is a comment."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from error
    return [host for line in lines if (host := line.partition("#")[0].strip())]


def to_all(plan: Plan, hosts: Iterable[str], jobs: int) -> Iterator[Result]:
    """Bring the file to all hosts, some at a time; results come as they come."""
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for done in as_completed([pool.submit(to_host, plan, host) for host in hosts]):
                yield done.result()
        except BaseException:
            # Ctrl-C: sessions under way come to their end, and the pool shall not go on to all other hosts.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def to_host(plan: Plan, host: str) -> Result:
    """Bring the file to one host. Never raises: a bad host does not stop the others."""
    try:
        done = subprocess.run(
            session(plan, host),
            input=plan.content,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
            start_new_session=True,  # the terminal's Ctrl-C shall not leave a host half-way
        )
    except subprocess.TimeoutExpired:
        return Result(host, FAILED, f"not done after {PATIENCE:g} s")
    except OSError as error:
        return Result(host, FAILED, f"cannot run {plan.ssh[0]}: {error.strerror}")
    said, complained = (each.decode(errors="replace") for each in (done.stdout, done.stderr))
    return judge(plan, host, done.returncode, said, complained)


def session(plan: Plan, host: str) -> list[str]:
    """The command that is a session with the host."""
    arguments = [plan.command, plan.path, plan.sum, "yes" if plan.dry_run else ""]
    remote = [*(("sudo", "-n") if plan.sudo else ()), "sh", "-c", _SCRIPT, "tproxy-sync", *arguments]
    options = [word for option in _SSH_OPTIONS for word in ("-o", option)]
    # One word: ssh joins words with spaces, and the host's shell parts them again.
    return [*plan.ssh, *options, "--", host, shlex.join(remote)]


def judge(plan: Plan, host: str, status: int, said: str, complained: str) -> Result:
    """What a session means that has ended."""
    told = dict(line.partition(" ")[::2] for line in said.splitlines())
    step = told.get("at", "")
    ours = complained.rpartition(_BEGIN)[2]
    complaints = [_readable(line) for line in ours.splitlines() if line.strip()]
    if status == _SSH_FAILED:
        where = f"connection lost while at {step}: " if step else ""
        return Result(host, FAILED, where + _ssh_reason(complaints))
    if status != 0:
        return Result(host, FAILED, _reason(plan, step, told.get("temp", ""), complaints))
    same = "same" in told
    if plan.dry_run:
        return Result(host, "unchanged" if same else "would change")
    if told.get("sum") != plan.sum:
        return Result(host, FAILED, "somebody else changed the file meanwhile")
    used, _, bridges = told.get("refreshed", "").partition(": ")
    if used != plan.path:
        return Result(host, FAILED, f"the file is in place, but tproxy uses {_readable(used)} there")
    return Result(host, "unchanged" if same else "changed", _readable(bridges))


def _reason(plan: Plan, step: str, temporary: str, complaints: list[str]) -> str:
    failed = _STEPS.get(step, step)
    if step == "check" and temporary:
        problems = [line.replace(temporary, plan.path) for line in complaints if temporary in line]
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            return f"{failed}: {problems[0]}{more}"
    return f"{failed}: {complaints[-1]}" if complaints else failed


def _ssh_reason(complaints: list[str]) -> str:
    text = "\n".join(complaints)
    for pattern, reason in _SSH_REASONS:
        if re.search(pattern, text):
            return reason
    return complaints[-1] if complaints else "ssh failed and did not say why"


def _readable(text: str) -> str:
    """A line from another host, which may hold what a terminal would obey."""
    return "".join(each if each.isprintable() else "?" for each in text.strip())
