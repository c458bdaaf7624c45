"""What is asked of the operating system, and what it refuses."""
