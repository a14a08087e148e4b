"""MVMAE-V2T: MVMAE with the reports as supervision; vision alone at inference.

arXiv 2511.22294. A text decoder predicts each study's impression from the visible
tokens of one of its views, and is discarded at export. docs/mvmae.md.

  pacx tokenizer --data=prepared/mimic_cxr --target=tokenizer.json
  python -m pacx_jax.main --config=configs/mvmae_v2t_vitb16.py --workdir=runs/v2t \\
      --config.data.path=prepared/mimic_cxr --config.data.tokenizer=tokenizer.json
"""

from configs import base, mvmae_vitb16


def get_config(arg=None):
    """Arguments: see configs/base.py."""
    presets = base.parse(arg)
    c = mvmae_vitb16.get_config(arg)
    c.name = "mvmae_v2t_vitb16"

    c.data.tokenizer = ""  # a tokenizer.json
    c.data.report_length = 300  # tokens; longer reports are cut
    c.data.report_sections = ("impression",)  # or findings, or both in any order

    c.caption.weight = 1.0
    c.caption.per_step = "one"  # view that the decoder reads; or all
    c.caption.width = 768  # channels of the text decoder's tokens
    c.caption.depth = 4  # blocks of the text decoder
    c.caption.num_heads = 8  # attention heads of a text decoder block
    c.caption.mlp_dim = 768  # hidden units of a text decoder block's MLP
    c.caption.dropout = 0.1  # rate in the text decoder's attentions and MLPs
    c.caption.posemb = "none"  # or learned
    c.caption.label_smoothing = 0.0  # of the next token's target; 0: none
    if "reference" in presets:
        # Its mean over both losses of all views halves the reconstruction's weight.
        c.loss.reconstruction_weight = c.caption.weight = 0.5
        c.caption.per_step = "all"
    if "runlocal" in presets:
        c.data.tokenizer = "runs/demo_mvmae/tokenizer.json"
        c.data.report_length = 64
        c.data.report_sections = ("findings", "impression")
        c.caption.update(width=128, depth=2, num_heads=4, mlp_dim=128)
    return c
