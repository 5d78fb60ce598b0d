"""Proof of exactness: recorded tensors of the published code against what this code computes."""
