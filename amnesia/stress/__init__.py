"""Does a forgotten entity come back: attacks by prompt, quantization, relearning.

Front door: `attacks`.
"""
