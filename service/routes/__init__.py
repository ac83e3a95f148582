"""The routes, one resource per file. A route parses, calls one thing, returns."""
