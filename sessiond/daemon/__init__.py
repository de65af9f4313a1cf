"""The daemon: everything put together, started, stopped, and reported on."""
