"""Frames in, a better committee out: labels, differences, training, validation, and the loop round them."""
