"""A GLIGEN for the demo model, of ComfyUI's own classes, with random weights."""

import comfy.gligen
import comfy.model_patcher
import torch
from coherence.attention.sites import sites_of

KEYS = 128


def gligen_for(model):
    """What ComfyUI's GLIGENLoader returns."""
    widths = [site.module.to_q.in_features for site in sites_of(model) if site.name.endswith("attn1")]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        modules = [comfy.gligen.GatedSelfAttentionDense(width, KEYS, width // 32, 32) for width in widths]
        net = comfy.gligen.Gligen(modules, comfy.gligen.PositionNet(KEYS, KEYS), KEYS)
        for name, parameter in net.named_parameters():  # gates that begin at 0 would change nothing
            torch.nn.init.normal_(parameter, std=0.05) if parameter.ndim else parameter.data.fill_(0.9)
            assert parameter.isfinite().all(), name
    device = torch.device("cpu")
    return comfy.model_patcher.CoreModelPatcher(net, device, device)


def with_boxes(conditioning, gligen):
    """As GLIGENTextBoxApply has it: words and a box, (height, width, y, x) in latents."""
    words = torch.randn(1, KEYS, generator=torch.Generator().manual_seed(5))
    return [[text, {**more, "gligen": ("position", gligen, [(words, 4, 4, 2, 0)])}] for text, more in conditioning]
