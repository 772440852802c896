"""The hook in bad surroundings: it works all the same, or it says why not and leaves no trace."""

from __future__ import annotations

import shlex
import signal

import pytest

from tests.netns.contract import furnish
from tests.netns.operations.test_hook import CONFIG, ENDPOINT
from tests.netns.program import program
from tests.netns.surroundings import ARGUMENTS, TPROXY, UP, answer, traces
from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.cli.hook import EXIT_IN_USE
from tproxy.lab.hypervisor import PATIENCE, Hypervisor


@pytest.fixture
def host(hypervisor: Hypervisor) -> Hypervisor:
    return furnish(hypervisor)


WORKS = {
    # A guest starts even when no log can be written.
    "disk full": f"mount -t tmpfs -o size=64k none /var/log; cat /dev/zero >/var/log/x 2>/dev/null; {UP}",
    "log read-only": f"mount -o remount,ro /var/log; {UP}",
    "no /var/log": f"mount -t tmpfs none /var; {UP}",
    "log files are directories": f"mkdir /var/log/one_tproxy.log /var/log/one_tproxy_br0.log; {UP}",
    "no file may grow": f"ulimit -f 0; {UP}",
    # Where namespaces are named.
    "/run/netns is not a mount": f"mkdir /run/netns; {UP}",
    "an empty directory for the namespace": f"mkdir -p /run/netns/one_tproxy_br0; {UP}",
    "a dangling link for the namespace": f"mkdir /run/netns; ln -s /none /run/netns/one_tproxy_br0; {UP}",
    "stray entries for others": f"mkdir -p /run/netns/one_tproxy_br7; touch /run/netns/one_tproxy_; {UP}",
    # What the caller hands down to the hook, or fails to.
    "no stdin": f"exec {UP} <&-",
    "no stdin, no stdout": f"exec {UP} <&- >&-",
    "no descriptors": f"exec {UP} <&- >&- 2>&-",
    "stdout and stderr full": f"exec {UP} --uplink eth9 >/dev/full 2>&1",
    "no environment": f"exec env -i {UP}",
    "no programs": f"PATH=/none; exec {UP}",
    "directory deleted": f"mkdir /run/gone; cd /run/gone; rmdir /run/gone; exec {UP}",
    "nothing may be read by anybody": f"umask 777; {UP}",
    "ended children are ignored": f"exec {shlex.join(program('signals', 'ignored'))} {UP}",
    "few descriptors for the hook": f"ulimit -Sn 32; {UP}",
}


@pytest.mark.parametrize("surroundings", WORKS)
def test_the_hook_works_although(host: Hypervisor, surroundings: str) -> None:
    done = host.run("sh", "-c", WORKS[surroundings])
    assert done.stderr == ""
    assert done.stdout == ""
    assert answer(host) == "hello"


def test_daemon_and_relays_obey_signals_that_the_caller_of_the_hook_blocked(host: Hypervisor) -> None:
    host.run(*program("signals", "blocked", *UP.split()))
    assert answer(host) == "hello"
    log = host.path("/var/log/one_tproxy_br0.log")
    log.rename(log.with_suffix(".1"))
    host.tproxy("reload")
    for _ in eventually():
        if log.exists():
            break
    assert host.tproxy("stop").stderr == ""  # no process had to be killed


def test_only_root_can_write_to_the_logs(host: Hypervisor) -> None:
    host.run("sh", "-c", f"umask 0; exec {UP}")
    modes = host.run("sh", "-c", "stat -c %a /var/log/one_tproxy*.log").stdout.split()
    assert len(modes) == 2
    assert not any(int(mode, 8) & 0o022 for mode in modes)


def test_anybody_can_list_namespaces_whatever_mask_of_modes_the_caller_has(host: Hypervisor) -> None:
    assert host.run("ls", "-d", "/run/netns", check=False).stdout == ""
    host.run("sh", "-c", f"umask 77; exec {UP}")
    assert host.run("stat", "-c", "%a", "/run/netns").stdout == "755\n"


def test_down_of_a_bridge_in_use_says_so_by_its_exit_code_when_stderr_is_full(host: Hypervisor) -> None:
    host.run("sh", "-c", UP)
    answer(host)  # there is a guest
    done = host.run("sh", "-c", f"exec {TPROXY} hook down --bridge br0 2>/dev/full", check=False)
    assert done.returncode == EXIT_IN_USE


def test_an_error_is_not_printed_to_stdout_when_stderr_is_closed(host: Hypervisor) -> None:
    done = host.run("sh", "-c", f"exec {UP.replace('br0', 'none')} 2>&-", check=False)
    assert (done.returncode, done.stdout) == (1, "")


def test_a_kernel_that_is_slow_to_make_a_namespace_is_waited_for(host: Hypervisor) -> None:
    host.add_bridge("br1")
    host.run("sh", "-c", UP.replace("br0", "br1"))  # starts the daemon, which must not be traced
    slow = "strace -f -qq -o /dev/null -e trace=unshare -e inject=unshare:delay_enter=2500000"
    host.run("sh", "-c", f"{slow} {UP}")
    assert answer(host) == "hello"


REFUSES = {
    "/run/netns is a file": ("touch /run/netns", "one_tproxy_br0: Not a directory"),
    "/run/netns is read-only": (
        "mkdir /run/netns; mount -t tmpfs -o ro none /run/netns",
        "one_tproxy_br0: Read-only file system",
    ),
    "a full directory for the namespace": (
        "mkdir -p /run/netns/one_tproxy_br0/x",
        "one_tproxy_br0 in /run/netns is no namespace; bridge br0 needs that name",
    ),
    "/run is read-only": ("mount -o remount,ro /run", "/run/tproxy: Read-only file system"),
    "/run/tproxy is a file": ("touch /run/tproxy", "/run/tproxy: File exists"),
    "sysctls are read-only": (
        "mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys",
        "ipv4/ip_forward: Read-only file system",
    ),
    "a veth of ours is a bridge": ("ip link add br0b type bridge", "br0b is not a veth"),
    "the map is of another type": (
        "nft 'add table ip one_tproxy; add map ip one_tproxy ep_br0 { type ipv4_addr : inet_service; }'",
        "map ep_br0 is not of type",
    ),
    "a stranger's chain jumps to the guard": (
        "nft 'add table bridge one_tproxy; add chain bridge one_tproxy ch_br0; "
        "add chain bridge one_tproxy mine; add rule bridge one_tproxy mine jump ch_br0'",
        "busy",
    ),
    "the table is switched off": (
        "nft 'add table bridge one_tproxy { flags dormant; }'",
        "nftables: ",
    ),
}


@pytest.mark.parametrize("surroundings", REFUSES)
def test_the_hook_fails_with_one_line_and_leaves_no_trace_when(host: Hypervisor, surroundings: str) -> None:
    prepare, reason = REFUSES[surroundings]
    host.run("sh", "-c", prepare)
    before = traces(host)
    done = host.run("sh", "-c", UP, check=False)
    assert done.returncode == 1
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert traces(host) == before


def test_the_hook_leaves_no_trace_when_no_process_can_be_started(host: Hypervisor) -> None:
    before = traces(host)
    refuse = "strace -qq -o /dev/null -e trace=clone,vfork -e inject=vfork:error=EAGAIN"
    refuse += " -e inject=clone:error=EAGAIN"
    done = host.run("sh", "-c", f"{refuse} {UP}", check=False)
    assert done.returncode == 1
    assert done.stderr == "tproxy: the daemon cannot be started: Resource temporarily unavailable\n"
    links, *others = traces(host)
    assert others == before[1:]
    assert "br0b" not in links  # links differ: a bridge loses its MAC with its last port


def test_the_hook_leaves_no_trace_on_a_kernel_without_bridge_tables(host: Hypervisor) -> None:
    before = traces(host)
    done = host.run(*program("hook_without_bridge_tables", *ARGUMENTS.split()), check=False)
    assert done.returncode == 1
    assert "this kernel has no nftables bridge tables" in done.stderr
    assert done.stderr.count("\n") == 1
    assert traces(host) == before


NOT_NAMES = (
    "",
    ".",
    "..",
    "../br0",
    "br0;rm",
    "br\udcff0",
    "br0\nbr1",
    "br0 br1",
    "x" * 300,
    "$(id)",
    "br0\t",
)


@pytest.mark.parametrize("arguments", ["up --bridge=", "up --bridge=br0 --uplink=", "down --bridge="])
def test_a_name_that_no_link_can_have_is_refused_in_one_line(host: Hypervisor, arguments: str) -> None:
    more = ["--config", "/run/tproxy.yaml"]
    before = traces(host)
    for name in NOT_NAMES:
        *options, last = arguments.split()
        done = host.tproxy("hook", *options, last + name, *more, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert "name" in done.stderr
    assert traces(host) == before


def test_a_network_name_cannot_forge_a_line_of_the_log(host: Hypervisor) -> None:
    forged = "x\n2030-01-01T00:00:00.000 1 ERROR all is lost\x1b[2J\r"
    host.tproxy("hook", "up", "--bridge", "br0", "--config", "/run/tproxy.yaml", f"--network={forged}")
    host.tproxy("hook", "down", "--bridge", "br0", f"--network={forged}")
    for log in host.path("/var/log").glob("*.log"):
        assert "all is lost" not in log.read_text()


def test_a_full_disk_costs_log_lines_and_nothing_else(host: Hypervisor) -> None:
    host.run("mount", "-t", "tmpfs", "-o", "size=128k", "none", "/var/log")
    host.run("sh", "-c", UP)
    guest = host.add_guest("guest", "br0")
    log, filler = host.path("/var/log/one_tproxy.log"), host.path("/var/log/filler")
    host.run("sh", "-c", "cat /dev/zero >/var/log/filler", check=False)
    size = log.stat().st_size
    for _ in range(30):  # a log line each: more than fits into the log's last page
        assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
    assert host.run("sh", "-c", UP).stderr == ""
    filler.unlink()
    for _ in eventually():  # the line comes when the connection has ended
        assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
        if log.stat().st_size > size and log.read_text().endswith("\n"):
            break


def test_a_configuration_that_is_rewritten_meanwhile_is_never_applied_by_half(
    host: Hypervisor,
) -> None:
    host.run("sh", "-c", UP)
    guest = host.add_guest("guest", "br0")
    writing = f"""
        while :; do
            rm -f /run/tproxy.yaml; printf 'tproxy:\\n- {{service_port: 50' >/run/tproxy.yaml
            printf '%s' '{CONFIG}' >/run/tproxy.yaml
        done"""
    host.popen("sh", "-c", writing)
    outcomes = []
    for _ in eventually():
        done = host.run("sh", "-c", UP, check=False)
        outcomes.append(done.returncode)
        assert done.returncode in (0, 1)
        assert done.stderr.count("\n") == done.returncode, done.stderr
        assert guest.get(SERVICE_ADDRESS, 5030) == "hello"
        if len(outcomes) >= 10 and {*outcomes} == {0, 1}:
            break


def test_a_daemon_that_hangs_does_not_keep_a_guest_from_starting(host: Hypervisor) -> None:
    host.run("sh", "-c", UP)
    host.run("pkill", "-STOP", "-f", "^one_tproxy *$")
    said = host.run("sh", "-c", UP).stderr
    assert "killed" in said
    assert said.count("\n") == 1
    assert answer(host) == "hello"


def test_a_daemon_that_hung_notices_that_a_bridge_was_taken_down_meanwhile(host: Hypervisor) -> None:
    host.add_bridge("br1")
    for bridge in ("br0", "br1"):
        host.run("sh", "-c", UP.replace("br0", bridge))
    host.run("pkill", "-STOP", "-f", "^one_tproxy *$")
    host.tproxy("hook", "down", "--bridge", "br0")
    host.run("pkill", "-CONT", "-f", "^one_tproxy *$")
    for _ in eventually():
        status = host.tproxy("status", "--json", check=False)  # it may still be behind
        if status.returncode == 0 and "br0" not in status.stdout:
            break
    assert "one_tproxy_br1" in host.tproxy("status").stdout


HOLDERS_OF_THE_LOCK = "find /proc/[0-9]*/fd -lname /run/tproxy/lock 2>/dev/null | cut -d / -f 3 | sort -u"


def test_a_late_daemon_of_a_killed_hook_gives_way_to_the_one_that_runs(host: Hypervisor) -> None:
    host.run(*program("hook_killed_at_start", *ARGUMENTS.split()), check=False)
    late = ("-f", "^[^ ]*python[^ ]* -m tproxy[.]daemon ")
    host.run("pkill", "-STOP", *late, check=False)
    with host.popen(*UP.split()) as second:
        for _ in eventually():  # both have the lock's file open: the second hook waits for the late daemon
            holders = host.run("sh", "-c", HOLDERS_OF_THE_LOCK, check=False).stdout
            if len(holders.split()) > 1:
                break
        host.run("pkill", "-CONT", *late, check=False)
        assert second.wait(PATIENCE) == 0
    for _ in eventually():
        if not host.run("pgrep", *late, check=False).stdout:
            break
    assert f"{ENDPOINT}:8080" in host.tproxy("status", "--verbose").stdout  # the daemon is asked
    assert answer(host) == "hello"


def test_a_daemon_that_hangs_in_its_start_after_its_hook_was_killed_ends_by_itself(host: Hypervisor) -> None:
    assert host.run(*program("hanging_daemon"), check=False).returncode == -signal.SIGALRM
    assert host.tproxy("status").stdout == ""


@pytest.mark.parametrize("transaction", [1, 2])
def test_a_flush_of_nftables_in_the_middle_of_a_hook_is_repaired(host: Hypervisor, transaction: int) -> None:
    nothing = traces(host)[2:]
    host.add_bridge("br1")
    host.run(*UP.replace("br0", "br1").split())
    flushing = program("hook_with_flush", str(transaction))
    assert "flushed" in host.run(*flushing, *ARGUMENTS.split()).stdout
    assert answer(host) == "hello"
    host.run(str(TPROXY), "hook", "down", "--bridge", "br1")
    assert "flushed" in host.run(*flushing, "hook", "down", "--bridge", "br0", "--force").stdout
    host.run("ip", "netns", "delete", "guest")
    assert traces(host)[2:] == nothing


def test_relays_inherit_no_descriptors_of_what_started_the_daemon(host: Hypervisor) -> None:
    host.run(*program("hook_with_many_descriptors", *ARGUMENTS.split()))
    for title in ("tproxy-spawner", "one_tproxy_br0"):
        # The oldest: a process that the spawner has just started has its title for a moment.
        pid = host.run("pgrep", "-o", "-f", f"^{title} *$").stdout.strip()
        held = [str(fd.readlink()) for fd in host.path(f"/proc/{pid}/fd").iterdir()]
        assert not [each for each in held if each.startswith("pipe:")]
