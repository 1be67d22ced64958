"""A run from configuration to exit: models joined with i-PI's forcefields, the server, the swap of a committee."""
