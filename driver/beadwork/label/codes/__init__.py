"""The codes that compute labels, each behind the contract of `label.label`."""
