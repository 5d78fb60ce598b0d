"""Metrics: pure functions of pictures, bits and features, and the small network that makes features."""
