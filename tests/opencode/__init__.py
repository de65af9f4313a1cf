"""Tests with real opencode instances, offline, on a model that the tests script."""
