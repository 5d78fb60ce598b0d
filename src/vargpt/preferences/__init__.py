"""Preference pairs: sample pictures, score them, pair the best with the worst."""
