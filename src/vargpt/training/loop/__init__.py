"""The loop and what it keeps: it knows no loss, no data and no model."""
