"""Bytes in and out. Pure."""
