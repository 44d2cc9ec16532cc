"""What is seen from outside: log lines, the audit, metrics."""
