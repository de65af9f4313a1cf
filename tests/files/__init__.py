"""Tests of sessiond.files."""
