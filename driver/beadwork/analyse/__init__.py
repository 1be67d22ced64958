"""Observables with error bars, from what i-PI wrote."""
