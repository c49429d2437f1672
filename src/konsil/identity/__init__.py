"""SPIFFE identities: fetched over the Workload API, verified against the ledger's trust bundles."""
