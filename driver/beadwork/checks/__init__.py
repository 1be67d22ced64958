"""What can be looked at before a run; every check is a function that yields findings, and changes nothing."""
