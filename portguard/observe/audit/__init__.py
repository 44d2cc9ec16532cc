"""The audit: who reached what and who was refused, as lines that cannot be changed unnoticed.

- `records`: one line, its place in the hash chain, signed checkpoints and the signed head
- `keys`: the Ed25519 key that signs
- `log_file`: the file that is written, its renaming, and what a crash left in it
- `recorder`: records into the file, in order, each linked to the one before
- `writer`: the recorder on a thread of its own; acknowledges
- `journal`: the copy to the system's journal
- `floods`: bounds on what others can cause to be recorded
- `reading`: the files of a log, in order, line by line
- `verifying`: finds lines that were altered, removed, inserted or re-ordered
- `selecting`: the lines that somebody asks for
"""
