"""What survives a restart (SQL, objects) and what travels between processes (the channel)."""
