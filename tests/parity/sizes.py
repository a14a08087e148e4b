"""Sizes of the parity cases, which both frameworks are given.

Small, and no two alike where a mix-up could hide: the grid of patches is not square,
and channels grow by odd numbers.
"""

MAE = {"patch": 4, "d": 24, "depth": 2, "heads": 3, "dec_d": 16, "dec_depth": 1,
       "dec_heads": 2}  # fmt: skip
MAE_GRID, MAE_KEEP = (4, 6), 7
MVMAE = {"patch": 4, "d": 24, "depth": 2, "heads": 3, "dec_depth": 1, "dec_heads": 2}
LABS = {"features": 10, "hidden": 16, "latent": 8}
ECG = {"base": 6, "filters": (6, 9, 9, 12, 12, 15, 15), "blocks": (2, 1, 1, 1, 1, 1, 1),
       "kernel": 16, "width": 3, "classes": 5}  # fmt: skip
# 5000 meets odd lengths at four stages; the others are odd from the start.
ECG_LENGTHS = (5000, 1001, 333)
FOREIGN = {"patch": 4, "d": 16, "depth": 2, "heads": 2, "side": 4}
FOREIGN_LARGER, REGISTERS, DINOV2_HIDDEN = 6, 3, 16  # patches a side; SwiGLU's units
EVA_HIDDEN, EVA_REFERENCE = 20, 3
DENSENET = {"blocks": (2, 1), "growth": 3, "stem": 6, "channels": 1}
DENSENET_SIDES = (24, 40)  # pixels; cells of 8
PACX = {"patch": 4, "d": 16, "depth": 2, "heads": 2, "eps": 1e-5}
PACX_GRID, PACX_RANK, PACX_ALPHA = (4, 4), 2, 4.0
PACX_ECG, PACX_LABS, PACX_SHARED = 12, 6, 8
ROLLOUT = {"patch": 4, "d": 16, "depth": 3, "heads": 2}
ROLLOUT_GRID, ROLLOUT_SIZE = (4, 4), 16
CLASSES = 3
SEGMENT_WIDTHS = (8, 6, 4, 3)
STEPS, EPOCH = 20, 4  # of the training cases; steps an epoch
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALES = {"start": 2.6593, "above": 5.3, "below": -1.0}  # of InfoNCE; clamp [0, 4.6]
TEXT = {"vocab": 23, "d": 24, "depth": 2, "heads": 3, "mlp": 40, "memory": 16}
UNIFIED = {"vocab": 29, "d": 24, "depth": 2, "heads": 3}
UNIFIED_LENGTH, UNIFIED_TEXT, UNIFIED_CODES = 11, 19, 7  # of 3 specials between
UNIFIED_WEIGHTS = (1.0, 2.5)  # of image and text
TEXT_LENGTH, TEXT_IMAGE_TOKENS, TEXT_PAD = 9, 5, 0
