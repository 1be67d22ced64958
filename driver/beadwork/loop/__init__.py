"""Again and again: simulate, choose, label, train, validate, swap."""
