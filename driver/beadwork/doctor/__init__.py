"""Before a run, and about its speed: each check is a function that yields findings, and changes nothing."""
