"""Tensors: the engine that trains and serves in one step, and the agent that holds its leases."""
