"""Optical flow by ComfyUI's model, in the nodes that measure flow."""

import json

import comfy.utils
import folder_paths
import pytest
import torch
import torch.nn.functional as F
from coherence.metrics.consistency import temporal_consistency
from coherence.nodes.checks import InputError
from coherence.nodes.consistency import TemporalConsistency
from coherence.nodes.flow_attention import FlowAttention, _flow_through
from coherence.nodes.flow_model import flow_of
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_void import OpticalFlowLoader
from torchvision.models.optical_flow import raft_large


class Pans(torch.nn.Module):
    """Finds the same motion everywhere, in pixels of the pictures that it gets, there and back in turns."""

    def __init__(self, dx, dy):
        super().__init__()
        self.flow = torch.nn.Parameter(torch.tensor([dx, dy]).view(1, 2, 1, 1))
        self.calls = 0

    def forward(self, first, second):
        self.seen = first
        self.calls += 1
        flow = self.flow * (1 if self.calls % 2 else -1)
        return [torch.zeros(1, 2, *first.shape[2:]), flow.expand(1, 2, *first.shape[2:])]


def patcher(module):
    return ModelPatcher(module, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def clip(frames, height, width, seed=0):
    spots = torch.rand(frames, 3, 5, 6, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(spots, (height, width), mode="bicubic").clamp(0, 1).movedim(1, -1)


def test_a_model_that_comfyui_loads_measures_the_flow(tmp_path, monkeypatch):
    torch.manual_seed(0)
    raft = raft_large().eval()
    comfy.utils.save_torch_file(raft.state_dict(), str(tmp_path / "raft.safetensors"))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "optical_flow", ([str(tmp_path)], {".safetensors"}))
    loaded = OpticalFlowLoader.execute("raft.safetensors").args[0]
    images = clip(3, 128, 136)
    found = _flow_through(images, loaded)
    first, second, third = (images.movedim(-1, 1) * 2 - 1).split(1)
    with torch.no_grad():
        expected = torch.cat([raft(first, second)[-1], raft(second, third)[-1]])
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(found, expected / torch.tensor([136.0, 128.0]).view(1, 2, 1, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(40, 100), (130, 260), (128, 128)])
def test_flow_is_in_the_pixels_of_the_pictures_and_these_in_the_range_of_the_model(height, width):
    module = Pans(4.0, -2.0)
    images = clip(2, height, width)
    flow = flow_of(patcher(module))(*images.double().split(1))
    seen = module.seen.shape[2:]
    assert flow.shape == (1, height, width, 2)
    assert flow.dtype == torch.float64
    assert min(seen) >= 128
    assert not any(side % 8 for side in seen)
    assert -1 <= module.seen.min() < -0.5 < 0.5 < module.seen.max() <= 1
    torch.testing.assert_close(flow[0, 0, 0], torch.tensor([4 * width / seen[1], -2 * height / seen[0]]).double())


def test_the_warped_error_is_taken_along_the_models_flow():
    wide = clip(1, 144, 160)[0]
    images = torch.stack([wide[8:136, 8:136], wide[10:138, 4:132]])  # content moves by 4 to the right and 2 up
    errors = []
    for by in ((4.0, -2.0), (0.0, 0.0)):
        text, _ = TemporalConsistency.execute(images, flow=patcher(Pans(*by))).args
        errors.append(json.loads(text)["clip"]["mean"]["warped_error"])
    assert errors[0] < 1e-8 < 1e-4 < errors[1]
    assert temporal_consistency(images).warped_error.item() == pytest.approx(errors[0], abs=1e-4)


@pytest.mark.parametrize(
    "node",
    [
        lambda **given: FlowAttention.execute(patcher(torch.nn.Identity()), **given),
        lambda **given: TemporalConsistency.execute(**given),
    ],
    ids=["FlowAttention", "TemporalConsistency"],
)
def test_what_is_no_model_is_refused(node):
    with pytest.raises(InputError, match="flow is a Tensor, expected a model that measures flow"):
        node(images=clip(2, 64, 64), flow=torch.zeros(1, 64, 64, 2))
