"""The small world: scenes to draw, describe, question and edit, and the checker that reads them back from pixels."""
