"""`python -m portguard` is the command `portguard`."""

from portguard.cli.main import main

main()
