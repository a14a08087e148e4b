"""The models once more, in plain numpy float64, written from the published facts.

Nothing here is shared with pacx_jax but the names of the parameters.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.special


def gelu(x):
    return 0.5 * x * (1 + scipy.special.erf(x / math.sqrt(2)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def swish(x):
    return x * sigmoid(x)


def dense(x, p):
    return x @ np.float64(p["kernel"]) + np.float64(p["bias"])


def layer_norm(x, p, eps):
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * np.float64(p["scale"]) + p["bias"]


def attention(x, p, heads):
    """Rows of the fused kernel are [q | k | v], each (heads, d / heads)."""
    n, d = x.shape
    q, k, v = np.split(dense(x, p["qkv"]), 3, axis=-1)
    out = np.zeros((n, d))
    c = d // heads
    for h in range(heads):
        part = slice(h * c, (h + 1) * c)
        logits = q[:, part] @ k[:, part].T / math.sqrt(c)
        e = np.exp(logits - logits.max(-1, keepdims=True))
        out[:, part] = e / e.sum(-1, keepdims=True) @ v[:, part]
    return dense(out, p["proj"])


def block(x, p, heads, eps):
    x = x + attention(layer_norm(x, p["norm1"], eps), p["attn"], heads)
    y = dense(layer_norm(x, p["norm2"], eps), p["mlp"]["fc1"])
    return x + dense(gelu(y), p["mlp"]["fc2"])


def patches(image, size):
    """(h, w, c) -> (n, size * size * c), by loops."""
    h, w, c = image.shape
    out = []
    for i in range(h // size):
        for j in range(w // size):
            pixels = []
            for row in range(size):
                for col in range(size):
                    for channel in range(c):
                        pixels.append(image[i * size + row, j * size + col, channel])
            out.append(pixels)
    return np.array(out, np.float64)


def positions(grid_h, grid_w, width):
    """By loops: the first half encodes x (column), the second y (row)."""
    quarter = width // 4
    out = np.zeros((grid_h * grid_w, width))
    for y in range(grid_h):
        for x in range(grid_w):
            for i in range(quarter):
                omega = 10000.0 ** (-i / quarter)
                row = out[y * grid_w + x]
                row[i], row[quarter + i] = math.sin(x * omega), math.cos(x * omega)
                row[2 * quarter + i] = math.sin(y * omega)
                row[3 * quarter + i] = math.cos(y * omega)
    return out


def vit(p, image, patch_size, heads, eps, keep=None):
    """One image (h, w, 3) -> tokens (1 + k, d)."""
    h, w, _ = image.shape
    x = dense(patches(image, patch_size), p["patch_embed"])
    x = x + positions(h // patch_size, w // patch_size, x.shape[-1])
    if keep is not None:
        x = x[keep]
    x = np.concatenate([np.float64(p["cls_token"][0]), x])
    for name in sorted(k for k in p if k.startswith("block_")):
        x = block(x, p[name], heads, eps)
    return layer_norm(x, p["norm"], eps)


def decoder(p, tokens, restore, grid, heads, eps):
    """Tokens (1 + k, d), restore (n,) -> pixels (n, p)."""
    x = dense(tokens, p["embed"])
    n, width = len(restore), x.shape[-1]
    full = np.empty((n, width))
    for place, source in enumerate(restore):
        inside = source < len(x) - 1
        full[place] = x[1 + source] if inside else p["mask_token"][0, 0]
    full += positions(*grid, width)
    x = np.concatenate([x[:1], full])
    for name in sorted(k for k in p if k.startswith("block_")):
        x = block(x, p[name], heads, eps)
    return dense(layer_norm(x, p["norm"], eps), p["pred"])[1:]


def mae_loss(prediction, target, mask):
    """Mean over the batch's masked patches of the mean squared pixel error."""
    total = count = 0.0
    for pred, true, removed in zip(prediction, target, mask, strict=True):
        for j in np.flatnonzero(removed):
            total += np.mean((pred[j] - true[j]) ** 2)
            count += 1
    return total / count


def conv1d(x, p, stride, groups):
    """(t, c_in) -> (ceil(t / stride), c_out), zeros around; kernel (k, in / g, out)."""
    kernel = np.float64(p["kernel"])
    k, per_group, c_out = kernel.shape
    length = math.ceil(len(x) / stride)
    total = max(0, (length - 1) * stride + k - len(x))
    x = np.pad(x, ((total // 2, total - total // 2), (0, 0)))
    out = np.zeros((length, c_out))
    for o in range(c_out):
        first = o // (c_out // groups) * per_group
        for i in range(length):
            window = x[i * stride : i * stride + k, first : first + per_group]
            out[i, o] = (window * kernel[:, :, o]).sum() + p["bias"][o]
    return out


def max_pool(x):
    """A zero on the right always, then pool 2, stride 2, floor."""
    x = np.concatenate([x, np.zeros((1, x.shape[1]))])
    return np.stack([x[i : i + 2].max(0) for i in range(0, len(x) - 1, 2)])


def net1d_block(x, p, groups, stride, first):
    y = conv1d(x if first else swish(x), p["conv1"], 1, 1)
    y = conv1d(swish(y), p["conv2"], stride, groups)
    y = conv1d(swish(y), p["conv3"], 1, 1)
    gate = dense(swish(dense(y.mean(0), p["se_fc1"])), p["se_fc2"])
    y = y * sigmoid(gate)
    if stride == 2:
        x = max_pool(x)
    grow = y.shape[1] - x.shape[1]
    if grow:
        x = np.pad(x, ((0, 0), (grow // 2, grow - grow // 2)))
    return x + y


def net1d(p, ecg, filters, blocks, groups_width):
    """One ECG (t, 12) -> (filters[-1],)."""
    x = swish(conv1d(ecg, p["stem"], 2, 1))
    for s, (width, count) in enumerate(zip(filters, blocks, strict=True)):
        for b in range(count):
            x = net1d_block(
                x,
                p[f"stage_{s}_block_{b}"],
                width // groups_width,
                2 if b == 0 else 1,
                s == 0 and b == 0,
            )
    return x.mean(0)


def labs_encoder(p, labs, mask, mask_inputs=True):
    values = labs * mask if mask_inputs else labs
    x = dense(np.concatenate([values, mask], -1), p["fc1"])
    return dense(gelu(layer_norm(x, p["norm"], 1e-5)), p["fc2"])


def labs_decoder(p, z):
    return sigmoid(dense(gelu(dense(z, p["fc1"])), p["fc2"]))
