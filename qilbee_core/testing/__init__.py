"""Conformance kits: subclass one, say how to open yours, and get every test of the contract."""
