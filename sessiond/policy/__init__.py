"""Rules that decide, given all they need to know: no input, output, time or chance."""
