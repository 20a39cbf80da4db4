"""A ControlNet of our own that does what other packs' do: it looks at whose rows it is given."""

import torch
from comfy.controlnet import ControlBase

ON = "telling_control_is_on"


class TellingControl(ControlBase):
    """Adds to the demo model's middle block, to negatives with another sign than to positives.

    As some packs have it, the method is on the instance, and patches of the model (:func:`hearing`) act only where it
    says so in transformer options.
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
        options[ON] = True
        signs = [2.0 if index else -1.0 for index in told]
        by_row = torch.tensor(signs).repeat_interleave(len(x) // len(told)).reshape(-1, 1, 1, 1)
        width = [128, x.shape[-2] // 2, x.shape[-1] // 2]
        out = by_row * (x.mean(1, keepdim=True)[..., ::2, ::2]).expand(-1, *width)
        return {"input": [], "middle": [out.contiguous()], "output": []}

    def get_control(self, *_call):
        raise AssertionError("the class's own must not be called")


def hearing(model):
    """Predicts otherwise where a :class:`TellingControl` is on."""

    def around(executor, *args, **kwargs):
        options = kwargs.get("transformer_options") or next(a for a in args if isinstance(a, dict) and "uuids" in a)
        return executor(*args, **kwargs) * (1.2 if ON in options else 1.0)

    clone = model.clone()
    clone.add_wrapper_with_key("diffusion_model", "hearing", around)
    return clone
