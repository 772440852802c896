"""A fleet: hosts that follow one store, and operators who write to it.

The nouns. A *store* holds a signed *document* for each host, and takes the host's *receipt*. A document has
the entries of a configuration file; its *serial* grows with each one that is issued for a host. A *revision*
is the store's own count of changes. A *policy* is the file of which documents for groups of hosts are
compiled.

A host needs the store for news only: what it has, it keeps on disk (``held``), and applies without the store.
"""
