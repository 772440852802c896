"""``tproxy lab``, run inside a stand-in, because a lab that is kept on the real host must stay untouched."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from tests.netns.program import program
from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import Hypervisor
from tproxy.lab.tour import STATE


def processes(host: Hypervisor) -> list[str]:
    """Return the processes of the host, without process 1 and ps."""
    lines = host.run("ps", "-eo", "pid=,args=").stdout.splitlines()
    return [line for line in lines if line.split()[0] != "1" and " ps -eo" not in line]


def test_the_lab_shows_each_guest_reaching_its_own_service(hypervisor: Hypervisor) -> None:
    done = hypervisor.tproxy("lab")
    service = next(line for line in done.stdout.splitlines() if "169.254.16.9:5030  " in line)
    assert service.split("  ")[-1].strip() == "✓ green's endpoint"
    assert "✓ blue's endpoint" in service
    assert "one_tproxy_lab1: " in done.stdout
    assert "5030 : 10.11.12.13 . 5030" in done.stdout
    assert "✗" not in done.stdout
    assert "\x1b" not in done.stdout, "colours, and this is no terminal"


def test_the_lab_shows_identity_by_tcp_and_udp_and_fail_over(hypervisor: Hypervisor) -> None:
    shown = hypervisor.tproxy("lab").stdout
    for network, port in (("blue", "vnet0"), ("green", "vnet1")):
        lines = [each for each in shown.splitlines() if f"guest {network}, 10.0.0.5" in each]
        assert len(lines) == 2
        for line in lines:
            assert f"✓ network {network}, MAC " in line
            assert line.endswith(f", port {port}")
    assert "protocol: udp" in shown
    assert "the first has ended  ✓ the second" in shown
    assert "the first is back    ✓ the first" in shown


def test_the_lab_leaves_nothing(hypervisor: Hypervisor) -> None:
    hypervisor.tproxy("lab")
    assert processes(hypervisor) == []
    assert hypervisor.run("ls", "/sys/class/net").stdout.split() == ["lo"]
    assert hypervisor.run("nft", "list", "ruleset").stdout == ""
    assert hypervisor.run("find", "/run", "/var/log", "-type", "f").stdout == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_lab_leaves_nothing_when_a_signal_ends_it(hypervisor: Hypervisor, number: signal.Signals) -> None:
    with hypervisor.popen(
        *program("announced", "-m", "tproxy", "lab", "--keep"), stdout=subprocess.PIPE
    ) as lab:
        assert lab.stdout is not None
        pid = lab.stdout.readline().strip()
        while "hook up" not in lab.stdout.readline():
            pass
        hypervisor.run("kill", f"-{number}", pid)
        lab.stdout.read()
    assert lab.returncode == 128 + number
    assert processes(hypervisor) == []
    assert not hypervisor.path(str(STATE)).exists()


def test_the_lab_fails_when_a_service_is_not_reached(hypervisor: Hypervisor) -> None:
    code = "from tproxy.lab import tour; tour._entry = lambda lane: ''; sys.exit(tour.run_lab(keep=False))"
    code = f"import sys; {code}"
    done = hypervisor.run(sys.executable, "-c", code, check=False)
    assert done.returncode == 1
    assert "not blue's endpoint" in done.stdout
    assert "Something is not as expected" in done.stdout


def test_a_lab_that_is_kept_can_be_entered_until_it_is_removed(hypervisor: Hypervisor) -> None:
    kept = hypervisor.tproxy("lab", "--keep")
    enter = next(line.split() for line in kept.stdout.splitlines() if line.strip().startswith("nsenter"))
    inside = hypervisor.run(*enter, "ip", "netns", "list").stdout
    assert {line.split()[0] for line in inside.splitlines()} >= {"blue", "green", "one_tproxy_lab0"}

    second = hypervisor.tproxy("lab", "--keep", check=False)
    assert second.returncode == 1
    assert second.stdout == ""
    assert second.stderr.startswith("tproxy: a lab is kept already")
    assert len(second.stderr.splitlines()) == 1

    hypervisor.tproxy("lab", "--down")
    for _ in eventually():  # unshare(1) waits for the lab's process 1, and ends right after it
        if processes(hypervisor) == []:
            break
    assert "nothing to remove" in hypervisor.tproxy("lab", "--down").stdout


def test_a_process_that_got_the_pid_of_a_lab_is_left_alone(hypervisor: Hypervisor) -> None:
    bystander = hypervisor.serve("sh", "-c", "echo ready $$; exec sleep 1000")
    pid = int(processes(hypervisor)[0].split()[0])
    hypervisor.write(str(STATE), json.dumps({"pid": pid, "started": 1}))
    hypervisor.tproxy("lab", "--down")
    assert bystander.poll() is None
    assert not hypervisor.path(str(STATE)).exists()
