"""The friendly façade: pipelines and conversations on top of a model and its processor."""
