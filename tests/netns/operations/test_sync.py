"""``tproxy sync`` with real ssh: sends one file to several stand-in hypervisors."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.netns import fleet as ssh
from tests.netns.fleet import CONFIG, NEW, OLD, Fleet
from tproxy.addresses import SERVICE_ADDRESS

# A file without problems where no name is looked up. No host resolves this name, RFC 6761.
UNRESOLVABLE = "tproxy: [{remote_addr: endpoint.invalid, remote_port: 80}]\n"


@pytest.fixture
def fleet(real_kernel: None) -> Iterator[Fleet]:
    with ssh.fleet(2) as found:
        for host in found.hosts.values():
            host.write(CONFIG, OLD)
        yield found


def send(fleet: Fleet, text: str, *options: str, status: int = 0) -> dict[str, str]:
    """Send a file of that text; return the result and detail of each host from the table."""
    fleet.workstation.write("/run/new.yaml", text)
    done = fleet.sync("--config", "/run/new.yaml", *options, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    rows = [line.split(maxsplit=1) for line in done.stdout.splitlines()[2:]]
    return {host: " ".join(rest.split()) for host, rest in rows}


def test_all_hosts_get_the_file_and_apply_it_to_their_bridges(fleet: Fleet) -> None:
    one, two = fleet.addresses
    guest = fleet.add_guest(one)

    fleet.workstation.write("/run/hosts", f"# all of them\n{one}\n\n{two} # the second\n")
    assert send(fleet, NEW, "--hosts", "/run/hosts") == {
        one: "changed bridges changed 1, unchanged 0, failed 0, skipped 0",
        two: "changed bridges changed 0, unchanged 0, failed 0, skipped 0",
    }
    assert fleet.files() == [NEW, NEW]
    assert guest.get(SERVICE_ADDRESS, 80) == "new"
    again = send(fleet, NEW, one)
    assert again == {one: "unchanged bridges changed 0, unchanged 1, failed 0, skipped 0"}


def test_maps_of_another_program_are_counted_and_are_no_failure(fleet: Fleet) -> None:
    one, _ = fleet.addresses
    fleet.add_map_of_another_program(one)
    counts = "bridges changed 0, unchanged 0, failed 0, skipped 1"
    assert send(fleet, NEW, one) == {one: f"changed {counts}"}


def test_a_host_that_finds_problems_in_the_file_keeps_its_old_one(fleet: Fleet) -> None:
    one, two = fleet.addresses
    results = send(fleet, UNRESOLVABLE, one, two, status=1)
    for result in results.values():
        assert result.startswith(f"failed check failed, the old file stays: {CONFIG}:1: entry 1: remote_addr")
    assert fleet.files() == [OLD, OLD]


def test_a_bad_host_does_not_stop_the_others(fleet: Fleet) -> None:
    one, two = fleet.addresses
    fleet.hosts[one].path("/run/bin/tproxy").unlink()
    results = send(fleet, NEW, "10.77.0.9", one, two, "no-such-host.invalid", status=1)
    assert list(results) == ["10.77.0.9", one, two, "no-such-host.invalid"]
    assert results[one] == "failed tproxy is not installed there, or not in the PATH of ssh sessions"
    assert results[two].startswith("changed")
    assert results["10.77.0.9"].startswith("failed unreachable: ")
    assert results["no-such-host.invalid"] == "failed unreachable: the name does not resolve"
    assert fleet.files() == [OLD, NEW]


def test_refused_keys_and_changed_host_keys_are_told_apart(fleet: Fleet) -> None:
    one, two = fleet.addresses
    fleet.hosts[one].write("/run/ssh/authorized_keys", "")
    fleet.workstation.write("/run/ssh/known_hosts", f"[{two}]:{ssh.PORT} ssh-ed25519 {'A' * 68}\n")
    known = fleet.workstation.path("/run/ssh/key.pub").read_text().split()[1]
    fleet.workstation.write("/run/ssh/known_hosts", f"[{two}]:{ssh.PORT} ssh-ed25519 {known}\n")
    assert send(fleet, NEW, one, two, status=1) == {
        one: "failed authentication failed",
        two: "failed host key not known or changed",
    }
    assert fleet.files() == [OLD, OLD]


def test_a_file_with_problems_is_not_sent_to_any_host(fleet: Fleet) -> None:
    fleet.workstation.write("/run/new.yaml", "tproxy: [{remote_addr: 10.0.0.1, remote_port: 0}]\n")
    done = fleet.sync("--config", "/run/new.yaml", *fleet.addresses, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[0].startswith("tproxy: /run/new.yaml:1: entry 1: remote_port '0'")
    assert fleet.files() == [OLD, OLD]


def test_a_file_from_a_pipe_is_sent_as_it_was_checked(fleet: Fleet) -> None:
    fleet.workstation.write("/run/new.yaml", NEW)
    sync = f"cat /run/new.yaml | {sys.executable} -m tproxy sync --config /dev/stdin --remote-path {CONFIG}"
    hosts = " ".join(fleet.addresses)
    fleet.workstation.run("sh", "-c", f"{sync} --ssh 'ssh -F {ssh.SSH_CONFIG}' {hosts}")
    assert fleet.files() == [NEW, NEW]


def test_a_dry_run_reports_what_would_change_and_changes_nothing(fleet: Fleet) -> None:
    one, two = fleet.addresses
    fleet.hosts[two].write(CONFIG, NEW)
    assert send(fleet, NEW, "--dry-run", one, two) == {one: "would change", two: "unchanged"}
    assert fleet.files() == [OLD, NEW]


def test_a_host_that_uses_another_file_is_a_failure(fleet: Fleet) -> None:
    one, two = fleet.addresses
    host = fleet.hosts[one]
    host.write("/run/one.conf", OLD)
    script = host.path("/run/bin/tproxy").read_text().replace(f"-{CONFIG}", "-/run/one.conf")
    host.path("/run/bin/tproxy").write_text(script)
    results = send(fleet, NEW, one, two, status=1)
    assert results[one] == "failed the file is in place, but tproxy uses /run/one.conf there"
    assert results[two].startswith("changed")


def test_a_target_that_is_a_folder_is_a_failure_and_nothing_is_left_in_it(fleet: Fleet) -> None:
    one, _ = fleet.addresses
    folder = CONFIG.rpartition("/")[0]
    results = send(fleet, NEW, "--remote-path", f"{folder}/", one, status=1)
    assert results[one].startswith("failed cannot replace the file: ")
    assert "directory" in results[one]
    assert fleet.files() == [OLD, OLD]


def test_the_new_file_keeps_owner_and_mode_of_the_old_one(fleet: Fleet) -> None:
    one, two = fleet.addresses
    old = fleet.hosts[one].path(CONFIG)
    fleet.hosts[one].run("chown", "0:4", CONFIG)
    old.chmod(0o640)
    fleet.hosts[two].path(CONFIG).unlink()
    send(fleet, NEW, one, two)
    assert (old.stat().st_gid, old.stat().st_mode & 0o777) == (4, 0o640)
    assert fleet.hosts[two].path(CONFIG).stat().st_mode & 0o777 == 0o644
