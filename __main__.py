"""`python -m clipglot` (and `torchrun -m clipglot`) run the command line."""

from clipglot.cli.main import main

main()
