"""Training: recipes, stages and the loop."""
