"""The gateway: HTTP in, messages to workers out. It authenticates, validates, forwards, streams."""
