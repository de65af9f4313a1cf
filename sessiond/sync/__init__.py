"""What must be the same everywhere: positions, folds, derivations. Pure."""
