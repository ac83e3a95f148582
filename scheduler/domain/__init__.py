"""Types, errors, registry and messages that every package shares; imports nobody."""
