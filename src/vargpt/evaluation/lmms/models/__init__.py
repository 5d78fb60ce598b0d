"""Models for lmms-eval before 0.7: LMMS_EVAL_PLUGINS=vargpt.evaluation.lmms reads this table (module and class)."""

AVAILABLE_MODELS = {"vargpt": "Vargpt"}
