"""``tproxy lab --inward``, inside a stand-in."""

from __future__ import annotations

from tests.netns.conftest import hypervisor, real_kernel
from tproxy.lab.hypervisor import Hypervisor

__all__ = ["hypervisor", "real_kernel"]


def test_the_tour_shows_a_client_reaching_guests_by_name_and_leaves_nothing(hypervisor: Hypervisor) -> None:
    shown = hypervisor.tproxy("lab", "--inward").stdout
    assert "https://green.example.com/  \u2713 green's page" in shown
    assert "whom the guest sees         \u2713 169.254.16.9" in shown
    assert "bad   guest: the guest refuses: nothing listens at 80 there" in shown
    assert "https://site.example.com/       \u2713 the page behind NAT" in shown
    assert "ssh site-a hostname             \u2713 site-a" in shown
    assert "2 of 2 hosts have their new document in force" in shown
    assert "guest at the site, 169.254.16.9:5030  \u2713 from the policy" in shown
    assert "\u2717" not in shown
    assert hypervisor.run("ls", "/sys/class/net").stdout.split() == ["lo"]
    assert hypervisor.run("pgrep", "-x", "haproxy", check=False).stdout == ""
    assert hypervisor.run("find", "/run", "/var/log", "-type", "f").stdout == ""
