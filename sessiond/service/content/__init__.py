"""What is in a session: its messages, parts and documents, conflicts and leases."""
