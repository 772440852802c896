"""Makes the script for clients from its template. Pure, apart from reading the template."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.resources import files

from tproxy.addresses import SERVICE_ADDRESS

# Never through the proxy: this machine, and what is reached without a route.
NO_PROXY = f"localhost,127.0.0.1,::1,{SERVICE_ADDRESS}"

_UNIT = re.compile(r"[A-Za-z0-9@_.-]{1,64}")
_PROXY = re.compile(r"[A-Za-z0-9.-]{1,253}:[0-9]{1,5}")


class BadQuestion(ValueError):
    """The request has a value that cannot be in a script."""


def setup(certificates: str, proxy: str, units: str = "", site_key: str = "") -> str:
    """Return the script that sets a machine up; for some systemd units only, where ``units`` names them.

    ``site_key`` is the key that signs sealed Debian suites, in armour; "" where there is none.

    Raises BadQuestion for values that are no unit or no ``host:port``: they come from whoever asks.
    """
    return _script("setup", certificates, proxy, units, site_key)


def check(certificates: str, proxy: str, units: str = "", site_key: str = "") -> str:
    """Return the script that reports what is still wrong: the same one. Raises BadQuestion."""
    return _script("check", certificates, proxy, units, site_key)


def cloud_config(certificates: str, proxy: str, units: str = "", site_key: str = "") -> str:
    """Return a cloud-config that writes the set-up script at the first boot, and runs it."""
    script = "".join(
        f"      {line}\n" if line else "\n"
        for line in setup(certificates, proxy, units, site_key).splitlines()
    )
    return (
        "#cloud-config\n"
        "write_files:\n"
        "  - path: /usr/local/sbin/tproxy-egress-setup\n"
        '    permissions: "0755"\n'
        "    content: |\n"
        f"{script}"
        "runcmd:\n"
        "  - [/usr/local/sbin/tproxy-egress-setup]\n"
    )


def _script(mode: str, certificates: str, proxy: str, units: str, site_key: str) -> str:
    names = [each.removesuffix(".service") for each in units.split(",") if each]
    if not all(_UNIT.fullmatch(each) for each in names):
        raise BadQuestion("units is not a list of systemd units, such as docker,containerd")
    if not _PROXY.fullmatch(proxy):
        raise BadQuestion("proxy is not host:port")
    values = {
        "MODE": mode,
        "PROXY": f"http://{proxy}",
        "NO_PROXY": NO_PROXY,
        "UNITS": " ".join(names),
        "CERTIFICATES": certificates.strip(),
        "SITE_KEY": site_key.strip(),
    }
    return re.sub("@([A-Z_]+)@", lambda found: values[found[1]], _template())


@lru_cache
def _template() -> str:
    return files("tproxy.egress.clients").joinpath("setup.sh").read_text(encoding="utf-8")
