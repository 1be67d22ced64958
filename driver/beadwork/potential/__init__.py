"""Evaluates many systems at once: graph, bundles, engines, the sum. No socket in here."""
