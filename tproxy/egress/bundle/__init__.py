"""Bundles: what a list names, in one plain tar, from a site with internet to one without.

``manifest`` is what is signed, ``parts`` reads and writes files in parts, ``creating`` writes a bundle,
``reading`` verifies one, ``importing`` puts it into a store and activates it.
"""
