"""Pure PyTorch: model families, operations on them, attacks, and the training engine.

Images are float32 (B, C, H, W) in [0, 1] at every border.
"""
