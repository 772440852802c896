"""Machines without a route install software, by a policy for their network: policy, proxy, mirror, bundles, ledger.

Nothing at or below ``tproxy.operations`` imports this package. docs/egress.md tells operators how to use it.
Its nouns are the types of ``tproxy.egress.model``.
"""
