"""Short work on tensors beside the engine; each module is a program of its own."""
