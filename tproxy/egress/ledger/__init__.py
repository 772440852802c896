"""The ledger: what was fetched and what was denied, as a chain of JSON lines that shows every later change.

``entries`` has the events, ``chain`` writes and verifies the chain, ``heads`` signs its end, ``queries``
reads.
"""
