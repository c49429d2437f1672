"""SPIFFE identities: fetched over the Workload API, verified against the ledger's trust bundles.

``authority`` and ``workload_api`` issue at a site without SPIRE; ``source`` follows either; ``verify``,
``tls`` and ``card`` say who a peer is.
"""
