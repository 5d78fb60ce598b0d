"""`python -m vargpt` is the command line."""

from vargpt.cli import main

main()
