"""A ControlNet of our own that does what other packs' do: it looks at whose rows it is given."""

import torch
from comfy.controlnet import ControlBase


class TellingControl(ControlBase):
    """Adds to the demo model's middle block, to negatives with another sign than to positives.

    As some packs have it, the method is on the instance.
    ``told``: the branches of its calls, and the shape of one's latents.
    """

    def __init__(self):
        super().__init__()
        self.told = set()
        self.get_control = self._instead

    def _instead(self, x, t, cond, branches, options):
        told = options["cond_or_uncond"]
        self.told.add((tuple(told), tuple(x[: len(x) // len(told)].shape)))
        assert cond["transformer_options"]["cond_or_uncond"] == told
        signs = [2.0 if index else -1.0 for index in told]
        by_row = torch.tensor(signs).repeat_interleave(len(x) // len(told)).reshape(-1, 1, 1, 1)
        width = [128, x.shape[-2] // 2, x.shape[-1] // 2]
        out = by_row * (x.mean(1, keepdim=True)[..., ::2, ::2]).expand(-1, *width)
        return {"input": [], "middle": [out.contiguous()], "output": []}

    def get_control(self, *_call):
        raise AssertionError("the class's own must not be called")
