"""FrameReferences encodes picture by picture, keeps what the prompt has, and says what is missing."""

import pytest
import torch
from coherence.attention.references import ReferencesError
from coherence.demo.model import load_vae
from coherence.nodes.checks import InputError
from coherence.nodes.frame_references import FrameReferences
from comfy.sd import VAE
from comfy.utils import load_torch_file
from comfy_extras.nodes_edit_model import ReferenceLatent
from tiny_models.dits import write_wan_vae

PROMPT = [[torch.zeros(1, 7, 48), {"pooled_output": torch.zeros(1, 32)}]]
LATENTS = {"samples": torch.zeros(4, 16, 8, 8)}


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 32, 32, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def vae(request, tmp_path):
    if request.param == "picture":
        return load_vae()
    write_wan_vae(tmp_path / "vae.safetensors")
    return VAE(sd=load_torch_file(str(tmp_path / "vae.safetensors")))


@pytest.mark.parametrize(("vae", "shape"), [("picture", (4, 4, 4, 4)), ("video", (4, 16, 1, 4, 4))], indirect=["vae"])
def test_every_picture_is_encoded_by_itself(images, vae, shape):
    """A video VAE, as Qwen-Image and Krea 2 have it, takes a batch for a video."""
    ((_, extras),) = FrameReferences.execute(PROMPT, images=images, vae=vae)[0]
    (references,) = extras["reference_latents"]
    assert references.shape == shape
    for image, reference in zip(images.split(1), references.split(1), strict=True):
        assert torch.equal(vae.encode(image[..., :3]), reference)


def test_references_that_a_prompt_has_are_kept_and_the_prompt_is_not_changed():
    (shared,) = ReferenceLatent.execute(PROMPT, {"samples": torch.ones(1, 16, 8, 8)})
    ((text, extras),) = FrameReferences.execute(shared, latents=LATENTS)[0]
    assert text is PROMPT[0][0]
    assert [len(each) for each in extras["reference_latents"]] == [1, 4]
    assert [len(each) for each in shared[0][1]["reference_latents"]] == [1]
    assert "model_conds" not in shared[0][1]


def test_a_second_set_is_for_as_many_frames():
    once = FrameReferences.execute(PROMPT, latents=LATENTS)[0]
    ((_, extras),) = FrameReferences.execute(once, latents=LATENTS)[0]
    assert [len(each) for each in extras["reference_latents"]] == [4, 4]
    with pytest.raises(ReferencesError, match="references for 4 frames already, and these are for 3"):
        FrameReferences.execute(once, latents={"samples": torch.zeros(3, 16, 8, 8)})


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({}, "images, latents: expected one of them. Neither is connected"),
        ({"images": True, "latents": LATENTS}, "images, latents: expected one of them. Both are connected"),
        ({"images": True}, "vae is not connected, expected the model's VAE"),
        ({"latents": {"samples": torch.zeros(1, 16, 5, 8, 8)}}, r"latents has shape \(1, 16, 5, 8, 8\), expected"),
        ({"latents": {"samples": torch.zeros(4, 16, 8)}}, r"latents has shape \(4, 16, 8\), expected"),
    ],
)
def test_inputs_that_do_not_go_together_are_refused(images, given, complaint):
    given = {name: images if value is True else value for name, value in given.items()}
    with pytest.raises(InputError, match=complaint):
        FrameReferences.execute(PROMPT, **given)
