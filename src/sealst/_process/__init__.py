"""What a process owes others: locks on what it writes, and a prompt end when it is asked to stop."""
