"""Short CPU work around jobs, and the relay that has it done at least once."""
