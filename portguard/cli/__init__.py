"""The command line: one file per command group; text for people is made here."""
