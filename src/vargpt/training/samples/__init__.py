"""From positions to micro-batches."""
