"""Sends one configuration file to many hypervisors, over the system's ssh.

Theory of operation. Each host gets one ssh session, with the file on its standard input and a small shell
script as its command. The script prints each step that it begins. So the result names the step at which a
session ended, also when the connection was lost. The host's own tproxy checks the new file first, with the
host's own name server; until then the old file is not touched. Then rename(2) replaces it, so that a hook
reads the old file or the new one, never a half-written one.
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

# The operator's own options come first and win, because ssh takes the first value of an option. BatchMode
# because nobody can answer the password prompts of several hosts at once.
_SSH_OPTIONS = (
    "BatchMode=yes",
    "LogLevel=ERROR",  # keeps notes about new host keys out of the reasons
    "ConnectTimeout=10",
    "ServerAliveInterval=10",
    "ServerAliveCountMax=3",
)

# Seconds for one host. A host that is reached can hang, such as one whose disk does not answer.
PATIENCE = 300.0

_SSH_FAILED = 255  # the exit status when ssh itself fails, ssh(1)

FAILED = "failed"

# Needs a POSIX shell and coreutils. The temporary file is in the target's folder, because rename(2) works
# only within one file system.
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
mv -fT -- "$temp" "$target"  # -T: fail when the target is a directory, do not move into it
sync -- "$directory"
echo at refresh
refreshed=$("$tproxy" refresh) || [ $? = 3 ]  # 3: it skipped bridges that do not follow the file
echo "refreshed $refreshed"
echo at verify
echo "sum $(sum_of "$target")"
"""

# Standard error before this line is from the host's shell, whose start-up files may print anything.
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

# Patterns of what ssh(1) prints when it gets no session, and the reason in the words of an operator.
_SSH_REASONS = (
    (r"Permission denied|Too many authentication failures", "authentication failed"),
    (r"Host key verification failed|IDENTIFICATION HAS CHANGED", "host key not known or changed"),
    (r"Could not resolve hostname", "unreachable: the name does not resolve"),
    (r"Connection refused", "unreachable: connection refused"),
    (r"timed out|Timeout", "unreachable: timeout"),
    (r"No route to host|Network is unreachable", "unreachable: no route"),
)


class Plan(NamedTuple):
    """The file to send, and how to send it; the same for all hosts."""

    content: bytes
    path: str  # on the hosts
    ssh: Sequence[str] = ("ssh",)
    command: str = "tproxy"  # on the hosts
    sudo: bool = False
    dry_run: bool = False

    @property
    def sum(self) -> str:
        """The SHA-256 of the file in hexadecimal digits."""
        return hashlib.sha256(self.content).hexdigest()


class Result(NamedTuple):
    """The result for one host; a row of the table."""

    host: str
    result: str
    detail: str = ""

    @property
    def failed(self) -> bool:
        return self.result == FAILED


def hosts_in(path: Path) -> list[str]:
    """Return the hosts that a file names, one on each line, with comments after #. Raises ConfigError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from error
    return [host for line in lines if (host := line.partition("#")[0].strip())]


def to_all(plan: Plan, hosts: Iterable[str], jobs: int) -> Iterator[Result]:
    """Send the file to all hosts, ``jobs`` at a time. Yields each result as soon as it is known."""
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for done in as_completed([pool.submit(to_host, plan, host) for host in hosts]):
                yield done.result()
        except BaseException:
            # Ctrl-C: the sessions under way finish, but the pool must not go on to the other hosts.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def to_host(plan: Plan, host: str) -> Result:
    """Send the file to one host. Every failure is a Result: a bad host does not stop the others."""
    try:
        done = subprocess.run(
            session(plan, host),
            input=plan.content,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
            start_new_session=True,  # so that Ctrl-C at the terminal does not cut a session short
        )
    except subprocess.TimeoutExpired:
        return Result(host, FAILED, f"not finished after {PATIENCE:g} s")
    except OSError as error:
        return Result(host, FAILED, f"cannot run {plan.ssh[0]}: {error.strerror}")
    said, complained = (each.decode(errors="replace") for each in (done.stdout, done.stderr))
    return judge(plan, host, done.returncode, said, complained)


def session(plan: Plan, host: str) -> list[str]:
    """Return the command line of a session with the host."""
    arguments = [plan.command, plan.path, plan.sum, "yes" if plan.dry_run else ""]
    remote = [*(("sudo", "-n") if plan.sudo else ()), "sh", "-c", _SCRIPT, "tproxy-sync", *arguments]
    options = [word for option in _SSH_OPTIONS for word in ("-o", option)]
    # The remote command is one quoted word: ssh joins words with spaces, and the host's shell splits them.
    return [*plan.ssh, *options, "--", host, shlex.join(remote)]


def judge(plan: Plan, host: str, status: int, said: str, complained: str) -> Result:
    """Return the result of a session that ended, from its exit status, standard output and error."""
    told = dict(line.partition(" ")[::2] for line in said.splitlines())
    step = told.get("at", "")
    ours = complained.rpartition(_BEGIN)[2]
    complaints = [_readable(line) for line in ours.splitlines() if line.strip()]
    if status == _SSH_FAILED:
        where = f"connection lost in step {step!r}: " if step else ""
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
    """Return a line of another host without control characters, which a terminal would obey."""
    return "".join(each if each.isprintable() else "?" for each in text.strip())
