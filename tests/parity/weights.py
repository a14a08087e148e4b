"""PyTorch's state dicts as pacx_jax's parameter trees.

The one place of the parity tests that knows both layouts. Gradients go through it too:
they are laid out as what they are gradients of, and may be of some parameters alone.
"""

from __future__ import annotations

import re

import flax
import numpy as np

ENCODER = [
    (r"patch_embed\.proj\.", "patch_embed."),
    (r"blocks\.(\d)\.", r"block_0\1."),
    (r"blocks\.(\d\d)\.", r"block_\1."),
]
# kind -> substitutions on a state dict's names; what begins with "-" is left out.
RULES = {
    "encoder": [(r"^pos_embed", "-"), *ENCODER],
    "mae": [
        (r"^model\.", ""),
        (r"^(decoder_)?pos_embed", "-"),
        (r"^mask_token", "decoder.mask_token"),
        (r"^decoder_(embed|norm|pred)", r"decoder.\1"),
        (r"^decoder_blocks", "decoder.blocks"),
        (r"^(?!decoder|-)", "encoder."),
        *ENCODER,
    ],
    "mvmae": [
        (r"^(en|de)coders\.vision", r"\1coder"),
        (r"patchify", "patch_embed"),
        (r"transformer\.(\d)\.", r"block_0\1."),
        (r"layer_norm", "norm"),
        (r"\.head", ".pred"),
        (r"pos_embedding", "pos_embed"),
        (r"mod_embedding", "view_embed"),
    ],
    "labs": [
        (r"^model\.", ""),
        (r"encoder\.0", "encoder.fc1"),
        (r"encoder\.1", "encoder.norm"),
        (r"encoder\.3", "encoder.fc2"),
        (r"decoder\.0", "decoder.fc1"),
        (r"decoder\.2", "decoder.fc2"),
    ],
    "ecg": [
        (r".*bn\d?\..*", "-"),
        (r"^dense", "head"),
        (r"^(first_conv|stage_list)", r"encoder.\1"),
        (r"first_conv\.conv", "stem"),
        (r"stage_list\.(\d)\.block_list\.(\d)", r"stage_\1_block_\2"),
        (r"(conv\d)\.conv", r"\1"),
    ],
    "pacx": [
        (r".*pos_embed", "-"),
        (r"^loss_module\.", ""),
        (r"^cxr_encoder\.base_model\.model\.(.*)lora_A\.default\.weight", r"lora.\1a"),
        (r"^cxr_encoder\.base_model\.model\.(.*)lora_B\.default\.weight", r"lora.\1b"),
        (r"^cxr_encoder\.base_model\.model\.(.*?)(base_layer\.)?(?=\w+$)",
         r"encoder.\1"),
        (r"^(\w+_to_\w+)\.mlp\.1", r"heads.\1.linear"),
        (r"^(\w+_to_\w+)\.mlp\.2", r"heads.\1.norm"),
        *ENCODER,
    ],
    "classifier": [
        (r"^model\.backbone\.pos_embed", "-"),
        (r"^model\.backbone", "encoder"),
        (r"^model\.head", "head.linear"),
        *ENCODER,
    ],
    "text": [
        (r"token_embed\.weight", "token_embed.embedding"),
        (r"positions\.weight", "pos_embed"),
        *ENCODER,
    ],
}  # fmt: skip
RULES["unified"] = RULES["text"]


def import_state(kind: str, state: dict[str, np.ndarray]):
    """The parameter tree of a state dict, or of the gradients of some of it."""
    flat = {}
    for name, value in state.items():
        for pattern, new in RULES[kind]:
            name = re.sub(pattern, new, name)
        if not name.startswith("-"):
            path, value = leaf(name, value)
            assert path not in flat, path
            flat[path] = value
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def leaf(name: str, x: np.ndarray):
    """A leaf in our layout: linear W^T, 2-D patches (p q c, d), 1-D (k, in, out)."""
    path = name.replace(".", "/")
    if path == "pos_embed":
        return path, x[None]
    if path.endswith(("/a", "/b")):
        return path, x.T
    if path.endswith("/pos_embed"):  # (n, 1, d), of MVMAE
        return path, x.transpose(1, 0, 2)
    if not path.endswith("/weight"):
        return path, x
    if x.ndim == 1:
        return path.removesuffix("weight") + "scale", x
    if x.ndim == 4:
        x = x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])
    elif x.ndim == 3:
        x = x.transpose(2, 1, 0)
    else:
        x = x.T
    return path.removesuffix("weight") + "kernel", x
