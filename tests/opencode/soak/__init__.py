"""Work at random on machines that share sessions, for long, and a judgement of what came of it."""
