"""A plugin for lmms-eval: `lmms-eval --model vargpt --model_args pretrained=MODEL --tasks ...`, no fork needed."""
