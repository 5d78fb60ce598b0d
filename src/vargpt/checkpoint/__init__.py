"""Reading, writing and translating weight files: knows names and shapes, not modules."""
