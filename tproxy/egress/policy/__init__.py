"""The policy: which network may fetch what.

Reads and edits egress.yaml, and judges requests; performs no network I/O.

``rules`` has the types, ``reader`` makes them of the file, ``places`` says what a URL is, ``judging``
decides, ``current`` keeps the policy of a running process, ``edit`` changes the file.
"""
