"""What can be done with sessions, whoever asks."""
