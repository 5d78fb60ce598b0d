"""Which weights there are: built, loaded, trained, adapted."""
