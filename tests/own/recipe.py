"""A recipe of one's own: 20 steps of `tests.own.brightness` on tiny images."""

from configs import base


def get_config(arg=None):
    """Takes no argument."""
    base.parse(arg)
    c = base.get_config()
    c.name, c.objective = "brightness", "tests.own.brightness"
    c.global_batch_size, c.total_steps = 8, 20
    c.log_every, c.eval_every, c.save_every = 1, 10, 10
    c.num_devices = 2
    base.vit(c)
    c.model.variant, c.model.patch_size = "mu", 8
    c.data.image_size = 16
    c.data.transform = "mae"
    c.data.threads = 1
    return c
