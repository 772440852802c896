"""Upgrades tproxy from a bundle: ``staging`` verifies and lays out what the bundle brings, ``wheels`` and
``debs`` install it, and ``services`` starts the services again."""
