"""Sharing the sessions of opencode: outbox, inbound lanes, turns, attached instances."""
