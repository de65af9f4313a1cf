"""Reading without Redis: this machine's copies, and what waits laid over them."""
