"""What tools answered, shared by the instances of a session and never stale."""
