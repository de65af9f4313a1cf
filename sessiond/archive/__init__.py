"""Archived sessions outside of Redis: the form of an archive, and a folder of them."""
