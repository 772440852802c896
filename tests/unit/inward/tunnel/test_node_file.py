"""The file of a node, and the texts that are made for OpenSSH."""

from __future__ import annotations

import pytest

from tproxy.errors import ConfigError
from tproxy.inward.tunnel import openssh, settings
from tproxy.inward.tunnel.settings import Address

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHI6IXolbnSxEXpFoPwKAjY8Xp/7OMwrRMQHUksxTyEQ"
GOOD = settings.text_of("gw.example.com:18000", KEY, "id.token") + "name: Site-A\n"


def test_the_printed_file_is_enough() -> None:
    found = settings.parse("f", GOOD)
    assert (found.gateway, found.key, found.token, found.name) == (
        Address("gw.example.com", 18000),
        KEY,
        "id.token",
        "site-a",
    )
    assert found.offers == {"ssh": Address("127.0.0.1", 22), "in": Address()}


def test_offers_are_ports_and_sockets() -> None:
    text = f"{GOOD}offer: {{api: '[::1]:6443', in: in.sock, local: 'unix:/run/x.sock'}}\n"
    assert settings.parse("f", text).offers == {
        "api": Address("::1", 6443),
        "in": Address(),
        "local": Address(path="/run/x.sock"),
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("gateway: gw", "gateway: g/w"), "f:2: gateway: 'g/w.example.com:18000' is not HOST or HOST:PORT"),
        ((":18000", ":99999"), "f:2: gateway: 'gw.example.com:99999' is not HOST or HOST:PORT"),
        (("ssh-ed25519", "ssh-dss"), "f:3: key: 'ssh-dss AAAA"),
        (("token:", "tokens:"), "f:4: 'tokens' is none of gateway, key, token, name, offer, host_keys"),
        (("Site-A", "a b"), "f: name: 'a b' is not the name of a node"),
        (("name: Site-A", "offer: {API: '1:1'}"), "f:5: offer: 'API' is not a name of small letters"),
        (("name: Site-A", "offer: {api: here}"), "f:5: offer: api: 'here' is not HOST:PORT or unix:/PATH"),
        (("name: Site-A", "offer: 5"), "f:5: this is not a mapping"),
        (("name: Site-A", "name: [a]"), "f:5: name is no text"),
        (("name: Site-A", "key: x"), "f:5: 'key' is there twice"),
        (("gateway: gw.example.com:18000", "x"), "f:"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_file_line_and_key(
    change: tuple[str, str], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        settings.parse("f", GOOD.replace(*change))
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_a_file_without_gateway_says_so() -> None:
    with pytest.raises(ConfigError, match="f: gateway is missing"):
        settings.parse("f", f"key: {KEY}\n")
    with pytest.raises(ConfigError, match="cannot read /nowhere"):
        settings.load("/nowhere")


def test_texts_for_openssh_name_what_they_are_for() -> None:
    gateway = Address("gw.example.com", 18000)
    script = openssh.node_script("site-a", gateway, KEY, {"ssh": Address("127.0.0.1", 22)})
    assert "-R /tunnel/site-a/ssh:127.0.0.1:22" in script
    assert f"echo 'tproxy-gateway {KEY}'" in script
    nodes = [{"name": "site-a", "login": "root", "host_keys": ["ssh-ed25519 AAAA"]}]
    text = openssh.operator_config("alice", "/d", "/d/key", gateway, nodes)
    assert "Host site-a\n    User root\n    ProxyJump tproxy-gateway\n" in text
    assert openssh.known_hosts(KEY, nodes) == f"tproxy-gateway {KEY}\nsite-a ssh-ed25519 AAAA\n"
