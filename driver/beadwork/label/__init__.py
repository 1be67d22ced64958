"""Frames in, labels out: which frames, which part of them, which code computes, and where it runs."""
