"""Backups of an installation: its database, its objects and the secret behind its keys."""
