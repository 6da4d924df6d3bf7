"""Models for lm-evaluation-harness, which the extra `gpukit[lm-eval]` installs.

    python -m gpukit.lm_eval --model gpukit --model_args pretrained=llama-q4.gguf --tasks arc_easy

is its own command line, which then knows the model `gpukit`; in a program an instance of
`gpukit.lm_eval.model.GpukitLM` is given to `lm_eval.simple_evaluate`.
"""
