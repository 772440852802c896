"""Machines without a route install software, by a policy for their network.

The parts are policy, proxy, mirror, bundles and ledger; docs/egress.md tells operators how to use them. Their
nouns are the types of ``tproxy.egress.model``. Nothing at or below ``tproxy.operations`` imports it.
"""
