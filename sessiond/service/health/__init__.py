"""What is wrong, and how it is put right: checks, scans, repairs, traces."""
