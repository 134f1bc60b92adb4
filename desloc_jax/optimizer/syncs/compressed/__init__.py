"""Fewer bytes: how trees become messages, and the syncs that send them."""
