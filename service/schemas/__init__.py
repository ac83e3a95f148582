"""Bodies of requests and answers, one resource per file."""
