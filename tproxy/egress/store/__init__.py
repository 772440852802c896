"""Everything that the egress node keeps: blobs by their SHA-256, records that name them, and bundles.

A *blob* is a file whose name is the SHA-256 of its content. A *record* says that an artifact (a wheel,
a manifest, a package) is this blob. A *bundle* is a signed list of records; at most one is active. What a
bundle names is never evicted. Mirror, bundles and the command line all use this one store.
"""
