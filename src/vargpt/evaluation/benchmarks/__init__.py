"""Outside benchmarks: pictures in the folders that the official scorers read, with a record of all that made them."""
