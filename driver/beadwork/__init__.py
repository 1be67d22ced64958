"""beadwork: a force-field server for path-integral molecular dynamics with i-PI."""
