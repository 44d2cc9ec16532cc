"""The audit: who reached what and who was refused, as lines that cannot be changed unnoticed.

- `records`: one line, its place in the hash chain, signed checkpoints and the signed head
- `keys`: the Ed25519 key that signs
- `reading`: the files of a log, in order, line by line
- `verifying`: finds lines that were altered, removed, inserted or re-ordered
- `selecting`: the lines that somebody asks for
"""
