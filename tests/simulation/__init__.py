"""The real replication code in one process, on a clock, a network, a disk and a Redis of ours."""
