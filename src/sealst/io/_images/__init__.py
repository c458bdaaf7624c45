"""Pictures and slides of every kind."""
