"""A bridge as the daemon remembers it, on its way from the daemon to a hook."""

from __future__ import annotations

import json

from tproxy.daemon.memory import Remembered, from_json, to_json
from tproxy.model import Endpoint, Member, Network, Service, ServiceKey, ServiceMap

SERVICES = {ServiceKey(80): Service(ServiceKey(80), Endpoint("10.0.0.1", 8080), "web, and more", 2.5)}
SERVICES[ServiceKey(81)] = (
    SERVICES[ServiceKey(80)]._replace(key=ServiceKey(81)).led_to(["fd00::1", "10.0.0.2"])
)


# Names may be of any bytes.
NETWORK = Network("\udcff and other bytes", "7")


def test_a_bridge_arrives_as_it_was_sent() -> None:
    for members in (None, {}, {"02:00:0a:00:00:05": Member(NETWORK, 2)}):
        cards = frozenset({("vnet0", each) for each in members or ()})
        wanted = ServiceMap("br0", SERVICES, NETWORK, members, cards=cards)
        for guarded, uplinks in ((True, {"eth1", "eth2"}), (False, set[str]())):
            each = Remembered(wanted, guarded, frozenset(uplinks))
            assert from_json(json.loads(json.dumps(to_json(each)))) == each


def test_a_bridge_of_an_older_daemon_has_no_cards() -> None:
    sent = to_json(Remembered(ServiceMap("br0", SERVICES, NETWORK, {}), True, frozenset()))
    del sent["cards"]
    assert from_json(sent).map.cards == frozenset()
