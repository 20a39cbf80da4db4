"""What every node of the pack owes its users, read from the schemas, so that nodes added later are held to it too."""

import ast
import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from coherence.hosting.provision import PACK
from coherence.nodes import CoherenceExtension
from comfy_api.latest import io

NODES = {node.GET_SCHEMA().node_id: node.GET_SCHEMA() for node in asyncio.run(CoherenceExtension().get_node_list())}
every_node = pytest.mark.parametrize("schema", NODES.values(), ids=NODES.keys())

PROMISED = {
    "DependencyNoise": "noise_seed kl kl_schedule divergence solver random_candidates line_iterations previous "
    "orthogonal loop → NOISE",
    "VideoNoisePrior": "noise_seed prior alpha → NOISE",
    "NoiseFrames": "noise latent_image → LATENT",
    "KeyframeNoise": "noise keyframes frames → NOISE",
    "NoiseCorrelation": "noise latent_image → IMAGE STRING",
    "MotionFieldNoise": "model positive negative cfg noise_seed latent_image sigmas delta_x delta_y t0 t1 "
    "mask background → LATENT SIGMAS",
    "CoherentSampler": "sampler noise → SAMPLER",
    "TemporalMomentumAttention": "model mu mu_schedule layers start_percent end_percent frames_per_batch previous keep "
    "→ MODEL",
    "MomentumOfRun": "model latent → MOMENTUM",
    "SaveMomentum": "momentum filename_prefix →",
    "LoadMomentum": "file → MOMENTUM",
    "CrossFrameAttention": "model keys layers start_percent end_percent pool seed → MODEL",
    "FlowAttention": "model images layers start_percent end_percent resolutions flow → MODEL",
    "VidToMe": "model chunk local_ratio global_ratio seed layers start_percent end_percent → MODEL",
    "PlugAndPlay": "model features layers start_percent end_percent registry → MODEL",
    "TokenFlow": "model chunk seed layers start_percent end_percent frames_per_batch → MODEL",
    "CoherenceDemoModel": "kind → MODEL CLIP VAE",
    "CoherenceDemoClip": "shape colour background motion frames size seed → IMAGE MASK",
    "LayerSweep": "model positive negative noise sampler sigmas latent_image vae perturbation score kind cfg layers "
    "select count percent start_percent end_percent clip_vision → ATTENTION_REGISTRY IMAGE STRING",
    "PerturbAttention": "model registry matrix alpha start_percent end_percent → MODEL",
    "IEGuidanceCFG": "model registry guidance scale start_percent end_percent rescale → MODEL",
    "IEGuider": "model registry guidance scale start_percent end_percent rescale positive negative cfg → GUIDER",
    "Pix2VideoGuidance": "model scale end_percent → MODEL",
    "BilateralDDIMInvert": "model positive negative cfg latent_image sigmas mode kernel_size sigma_spatial "
    "sigma_intensity filter_until restandardise refine_iterations seed keep_trajectory → LATENT STRING TRAJECTORY",
    "SamplerBilateralDDIMInvert": "mode kernel_size sigma_spatial sigma_intensity filter_until restandardise "
    "refine_iterations → SAMPLER",
    "NoiseFromLatent": "latent model → NOISE",
    "NullTextInvert": "model positive negative cfg latent_image sigmas inner_steps learning_rate early_stop "
    "refine_iterations precision → CONDITIONING LATENT LATENT STRING",
    "WordMaps": "model conditioning clip words latent_image noise sigmas measure_steps layers threshold prompt "
    "→ IMAGE MASK",
    "EntropyGuidedEdit": "model source target negative registry noise sampler sigmas latent_image cfg source_cfg "
    "replace start_percent end_percent mask target_latent trajectory alignment → LATENT LATENT",
    "AlignPrompts": "clip source_text target_text → CONDITIONING CONDITIONING PROMPT_ALIGNMENT STRING",
    "FrameReferences": "conditioning images latents vae → CONDITIONING",
    "RAVEGrid": "model grid seed → MODEL",
    "FlowEdit": "model source target negative latent_image sigmas source_cfg target_cfg skip_steps averages seed "
    "registry → LATENT",
    "STAMInflate": "model position frame_attention pool norm weights strength layers → MODEL",
    "TuneAVideoInflate": "model weights layers position → MODEL",
    "OneShotTune": "model positive latent_image steps learning_rate batch_frames gradient_checkpointing precision seed "
    "→ STAM_WEIGHTS IMAGE STRING",
    "SaveSTAM": "weights filename_prefix →",
    "LoadSTAM": "file → STAM_WEIGHTS",
    "GEAdapterTrain": "model clip clips frames_per_clip captions clip_vision_output rank layers shared_tokens "
    "temporal_weight diffusion_weight temporal_range_start steps learning_rate warmup_steps gradient_accumulation seed "
    "adapter control_net control_images control_strength → GE_ADAPTER IMAGE STRING",
    "GEAdapterApply": "model adapter strength start_percent end_percent → MODEL",
    "GEAdapterTokens": "conditioning adapter clip_vision_output shared_weight frame_weight → CONDITIONING",
    "SaveGEAdapter": "adapter filename_prefix →",
    "LoadGEAdapter": "file → GE_ADAPTER",
    "TemporalConsistency": "images reference seams clip_vision clip prompt reference_prompt flow → STRING IMAGE",
    "MatchClipColour": "images reference method momentum strength mask → IMAGE",
    "MatchLatentColour": "latent reference method momentum strength mask → LATENT",
}
FAMILIES = ("attention", "demo", "files", "frames", "metrics", "nodes", "noise", "samplers", "techniques", "training")
SOURCES = [path for family in FAMILIES for path in sorted((PACK / family).glob("*.py"))]
SOURCES = [path for path in SOURCES if not path.match("demo/train*.py")]  # these run in a process of their own
TORCHS_OWN = ("torch", "torch.random", "torch.cuda")
DRAWING = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"}
DRAWING |= {f"{name}_like" for name in DRAWING} | {"normal_", "uniform_", "exponential_", "bernoulli_", "random_"}


def every_input(inputs: list) -> Iterator[io.Input]:
    """The inputs with those that a choice brings along."""
    for item in inputs:
        yield item
        if isinstance(item, io.DynamicCombo.Input):
            for option in item.options:
                yield from every_input(option.inputs)


def is_a_sentence(text: str | None, least: int) -> bool:
    return bool(text) and len(text) >= least and text.rstrip().endswith((".", "?"))


@pytest.mark.parametrize(("node_id", "promise"), PROMISED.items())
def test_a_promised_node_has_its_inputs_and_outputs(node_id, promise):
    inputs, outputs = (names.split() for names in promise.split("→"))
    schema = NODES[node_id]
    assert [item.id for item in schema.inputs] == inputs
    assert [item.io_type for item in schema.outputs] == outputs


@every_node
def test_a_node_says_what_it_is_for_and_can_be_found(schema):
    assert schema.category.startswith("coherence/")
    assert is_a_sentence(schema.description, 60)
    assert len(schema.search_aliases) >= 3
    assert schema.display_name != schema.node_id


@every_node
def test_every_input_and_output_has_a_tooltip_of_substance(schema):
    for item in every_input(schema.inputs):
        assert is_a_sentence(item.tooltip, 30), f"{item.id}: {item.tooltip!r}"
    for output in schema.outputs:
        assert is_a_sentence(output.tooltip, 20), f"{output.id}: {output.tooltip!r}"


@every_node
def test_the_help_page_explains_every_input(schema):
    page = (PACK / "web" / "docs" / f"{schema.node_id}.md").read_text("utf-8")
    missing = [item.id for item in every_input(schema.inputs) if f"`{item.id}`" not in page]
    assert not missing
    assert page.startswith(f"# {schema.display_name}\n")
    assert "## Troubleshooting" in page


@every_node
def test_a_workflow_shows_the_node(schema):
    assert schema.node_id in set().union(*map(node_types, (PACK / "workflows").glob("*.json")))


def node_types(path: Path) -> set[str]:
    workflow = json.loads(path.read_text("utf-8"))
    graphs = [workflow, *(workflow.get("definitions") or {}).get("subgraphs", ())]
    return {node["type"] for graph in graphs for node in graph["nodes"]}


@every_node
def test_the_readme_leads_to_the_help_page(schema):
    assert f"(web/docs/{schema.node_id}.md)" in (PACK / "README.md").read_text("utf-8")


def test_every_help_page_belongs_to_a_node():
    assert {path.stem for path in (PACK / "web" / "docs").glob("*.md")} == NODES.keys()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACK).as_posix())
def test_no_global_random_state_is_used(path):
    assert not list(global_draws(ast.parse(path.read_text("utf-8"))))


def global_draws(tree: ast.AST) -> Iterator[str]:
    """Calls that draw from, or seed, a random state that others share."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        name = ast.unparse(call.func)
        module, _, function = name.rpartition(".")
        has_generator = any(keyword.arg == "generator" for keyword in call.keywords)
        if (
            (function in DRAWING and not has_generator and (module == "torch" or function.endswith("_")))
            or (function in ("manual_seed", "manual_seed_all", "seed") and module in TORCHS_OWN)
            or (module == "random" and function not in ("Random", "SystemRandom"))
            or (module in ("np.random", "numpy.random") and function != "default_rng")
            or function == "prepare_noise"
        ):
            yield f"line {call.lineno}: {name}"


@pytest.mark.parametrize(
    ("code", "is_global"),
    [
        ("torch.randn(3)", True),
        ("torch.randn(3, generator=g)", False),
        ("x.normal_()", True),
        ("torch.manual_seed(0)", True),
        ("torch.Generator().manual_seed(0)", False),
        ("g.manual_seed(0)", False),
        ("random.choice(y)", True),
        ("random.Random(0).choice(y)", False),
        ("np.random.rand(3)", True),
        ("np.random.default_rng(0).normal()", False),
        ("comfy.sample.prepare_noise(x, 0)", True),
    ],
)
def test_the_search_for_global_random_state_finds_it(code, is_global):
    assert bool(list(global_draws(ast.parse(code)))) is is_global
