"""`make demo`: draw, read and edit with the bundled model, and show it all on one page."""
