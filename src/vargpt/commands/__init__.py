"""The bodies of the command line's verbs; each imports what is heavy when it runs, not before."""
