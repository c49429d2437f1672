"""The rules as a contract on an Ethereum: what stands in a call's data, and what the contract shows.

The contract itself is in `contract/`; docs/adr/0027 says how it keeps the rules. Nothing here needs a
network.
"""
