"""What is seen from outside: log lines."""
