"""The mirror: an HTTP server over the store, which in dmz mode fetches from upstream what it does not have.

``server`` takes connections and says who calls; a module for each kind (``pypi``, ``deb``, ``oci``,
``galaxy``, ``files``) turns a path into an answer; ``upstream`` fetches. In sealed mode nothing here opens a
connection.
"""
