"""The fault laboratory: real daemons and a real Redis, faults by a seed, and what must hold."""
