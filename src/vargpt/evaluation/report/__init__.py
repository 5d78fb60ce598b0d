"""Results as pages: one HTML file each, with its plots and pictures inside it."""
