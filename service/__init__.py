"""HTTP: authenticates, validates, forwards and streams."""
