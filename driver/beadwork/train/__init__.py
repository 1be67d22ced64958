"""Labels in, models out: the difference to the baseline, hold-out, training, calibration, validation, provenance."""
