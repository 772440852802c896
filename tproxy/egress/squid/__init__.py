"""squid as our engine: its configuration, the helper that it asks about each request, and its authority.

squid opens HTTPS, checks the header of the PROXY protocol, caches and logs. It decides nothing:
``external_acl`` judges each request by the policy.
"""
