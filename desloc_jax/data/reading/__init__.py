"""Texts, from whatever files hold them."""
