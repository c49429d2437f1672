"""The rules as a contract on an Ethereum: what stands in a call's data, and what the contract shows.

No node uses it yet: there is no engine behind it, only the contract in `contract/`, the encoding of its calls
and the tests that hold both equal to `core/rules`. docs/adr/0027 says how it keeps them. Nothing here needs a
network.
"""
