"""Names in DNS that lead to the gateways: zones, who may have which name, and the records.

A *zone* is an entry of ``tproxy_zones``. One without owner is the operator's (a managed domain); one with an
owner is that owner's, who has to *prove* control of it. A *claim* is an owner's wish for a zone or for the
domain of a route. A *server* is where a zone's records are: PowerDNS, or any server that takes RFC 2136. A
*marker* is a TXT record that says which addresses one gateway put at a name. Records without one are never
touched.
"""
