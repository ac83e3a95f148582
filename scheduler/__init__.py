"""The work: jobs, requests, adapters, tenants, budgets and blocks, as ints and strings."""
