"""Which frames to keep, and where they are kept."""
