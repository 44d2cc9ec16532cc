"""The small certificate authority: keys, certificates, and the store of what was issued."""
