"""From conversations and image files to `ModelInputs`: chat format, text tokens, pixels and positions."""
