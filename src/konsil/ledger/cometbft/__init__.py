"""The engine for a consortium: the rules as an application of CometBFT, which every member runs.

Byzantine-tolerant: less than a third of the members that validate may fail or lie. Final in one block. Begin
reading at `application`; `ledger` is what a node has of it. Modules are imported by name, since some need the
extra's library and some do not.
"""
