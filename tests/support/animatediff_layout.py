"""AnimateDiff-Evolved on the demo model: the real pack where the host has it, and a stand-in of its layout.

The stand-in has what matters to whoever wants to reach its temporal attention: motion modules of the pack's names and
nesting, inserted into the UNet's blocks for a run only; an attention that is not ComfyUI's and is told nothing of
transformer_options; context windows that are told in ``ad_params``.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import comfy.model_management
import comfy.ops
import torch
from comfy.ldm.modules.attention import FeedForward, SpatialTransformer, attention_basic
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import PatcherInjection, WrappersMP
from torch import nn

Animate = Callable[..., ModelPatcher]  # (model, window=None) -> clone; window: frames of a context window

# Channels of the demo model's blocks that get a motion module.
DOWN, MIDDLE, UP = (64, 128), 128, (128, 128, 64, 64)
HEADS, MAX_FRAMES = 8, 24
ops = comfy.ops.disable_weight_init


def find_packs(comfyui: Path) -> dict[str, Animate]:
    """The stand-in, and the real pack if it is in the host's ``custom_nodes``; by name."""
    found = {"stand-in": animate}
    for module in sorted((comfyui / "custom_nodes").glob("*/animatediff/motion_module_ad.py")):
        found["AnimateDiff-Evolved"] = RealPack(module.parents[1])
    return found


def randomise(module: nn.Module) -> None:
    """Unit variance through every layer, and queries and keys sharp enough for a mistake to show."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.ndim > 1:
                gain = 2.0 if name.endswith(("to_q.weight", "to_k.weight")) else 1.0
                weight.copy_(torch.randn(weight.shape, generator=generator) * gain * weight[0].numel() ** -0.5)
            else:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)


def patcher_of(model: nn.Module) -> ModelPatcher:
    return ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


class VersatileAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.actual_attention = lambda q, k, v, heads, mask=None: attention_basic(q, k, v, heads, mask)
        self.heads, self.is_cross_attention = HEADS, False
        self.to_q, self.to_k, self.to_v, self.to_out = (ops.Linear(channels, channels) for _ in range(4))

    def forward(self, x, video_length, transformer_options=None):
        """(branches · frames, places, channels); attends along the frames."""
        places = x.shape[1]
        x = x.unflatten(0, (-1, video_length)).transpose(1, 2).flatten(0, 1)
        out = self.to_out(self.actual_attention(self.to_q(x), self.to_k(x), self.to_v(x), self.heads, None))
        return out.unflatten(0, (-1, places)).transpose(1, 2).flatten(0, 1)


class TemporalTransformerBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention_blocks = nn.ModuleList(VersatileAttention(channels) for _ in range(2))
        self.norms = nn.ModuleList(ops.LayerNorm(channels) for _ in range(2))
        self.ff = FeedForward(channels, glu=True, operations=ops)
        self.ff_norm = ops.LayerNorm(channels)

    def forward(self, x, video_length, transformer_options=None):
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            x = x + attention(norm(x), video_length=video_length, transformer_options=transformer_options)
        return x + self.ff(self.ff_norm(x))


class TemporalTransformer3DModel(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ops.GroupNorm(32, channels)
        self.proj_in, self.proj_out = ops.Linear(channels, channels), ops.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([TemporalTransformerBlock(channels)])
        self.video_length = 0

    def forward(self, x, transformer_options=None):
        h = self.proj_in(self.norm(x).flatten(2).mT)
        for block in self.transformer_blocks:
            h = block(h, video_length=self.video_length, transformer_options=transformer_options)
        return x + self.proj_out(h).mT.reshape(x.shape)


class VanillaTemporalModule(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.temporal_transformer = TemporalTransformer3DModel(channels)

    def forward(self, x, context=None, transformer_options=None):
        return self.temporal_transformer(x, transformer_options=transformer_options)


class MotionModule(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.motion_modules = nn.ModuleList([VanillaTemporalModule(channels)])


class AnimateDiffModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down_blocks = nn.ModuleList(map(MotionModule, DOWN))
        self.up_blocks = nn.ModuleList(map(MotionModule, UP))
        self.mid_block = MotionModule(MIDDLE)

    def inject(self, patcher: ModelPatcher) -> None:
        unet = patcher.model.diffusion_model
        for blocks, groups in (
            (unet.input_blocks, self.down_blocks),
            ([unet.middle_block], [self.mid_block]),
            (unet.output_blocks, self.up_blocks),
        ):
            modules = (module for group in groups for module in group.motion_modules)
            hosts = [block for block in blocks if any(isinstance(m, SpatialTransformer | ResBlock) for m in block)]
            for block, module in zip(hosts, modules, strict=True):
                transformers = [n for n, m in enumerate(block) if isinstance(m, SpatialTransformer)]
                residuals = [n for n, m in enumerate(block) if isinstance(m, ResBlock)]
                block.insert((transformers[-1:] or residuals)[0] + 1, module)

    def eject(self, patcher: ModelPatcher) -> None:
        unet = patcher.model.diffusion_model
        for block in (*unet.input_blocks, unet.middle_block, *unet.output_blocks):
            for number in reversed([n for n, m in enumerate(block) if isinstance(m, VanillaTemporalModule)]):
                block.pop(number)

    def set_video_length(self, frames: int) -> None:
        for module in self.modules():
            if isinstance(module, TemporalTransformer3DModel):
                module.video_length = frames


def animate(model: ModelPatcher, window: int | None = None) -> ModelPatcher:
    """The stand-in."""
    motion = AnimateDiffModel()
    randomise(motion)
    clone = model.clone()
    clone.set_additional_models("ADE", [patcher_of(motion)])
    clone.set_injections("ADE", [PatcherInjection(motion.inject, motion.eject)])

    def run_motion_module(layer, x, emb, context, transformer_options, *_):
        return layer(x, context, transformer_options=transformer_options)

    clone.set_model_forward_timestep_embed_patch((VanillaTemporalModule, run_motion_module))

    def by_windows(executor, model, conds, x, timestep, model_options):
        frames = list(range(len(x)))
        outputs = []
        for start in range(0, len(x), window or len(x)):
            indices = frames[start : start + (window or len(x))]
            motion.set_video_length(len(indices))
            parameters = {"full_length": len(x), "sub_idxs": indices if window else None}
            options = {**model_options, "transformer_options": {**model_options["transformer_options"]}}
            options["transformer_options"]["ad_params"] = parameters
            outputs.append(executor(model, conds, x[indices], timestep[indices], options))
        return [torch.cat(parts) for parts in zip(*outputs, strict=True)]

    clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "ADE", by_windows)
    return clone


class RealPack:
    """The pack itself, through its own nodes, with a motion model of its own classes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, model: ModelPatcher, window: int | None = None) -> ModelPatcher:
        nodes, parts, injection = (self._module(name) for name in ("nodes", "motion_module_ad", "model_injection"))
        info = parts.AnimateDiffInfo("SD1.5", parts.AnimateDiffFormat.ANIMATEDIFF, parts.AnimateDiffVersion.V2, "tiny")
        motion = parts.AnimateDiffModel({"pos_encoder.pe": torch.zeros(1, MAX_FRAMES, 1)}, info, {"ops": ops})

        def group(channels: int) -> nn.Module:  # of the middle, as those have one module each
            return parts.MotionModule(channels, temporal_pe_max_len=MAX_FRAMES, block_type=parts.BlockType.MID, ops=ops)

        motion.down_blocks, motion.up_blocks = nn.ModuleList(map(group, DOWN)), nn.ModuleList(map(group, UP))
        motion.mid_block = group(MIDDLE)
        randomise(motion)
        device = comfy.model_management.get_torch_device()
        patcher = injection.create_MotionModelPatcher(motion, device, comfy.model_management.unet_offload_device())

        def run(node: str, **inputs):
            cls = nodes.NODE_CLASS_MAPPINGS[node]
            return getattr(cls(), cls.FUNCTION)(**inputs)[0]

        windows = (
            {}
            if window is None
            else {"context_options": run("ADE_StandardStaticContextOptions", context_length=window, context_overlap=0)}
        )
        models = run("ADE_ApplyAnimateDiffModelSimple", motion_model=patcher)
        return run("ADE_UseEvolvedSampling", model=model, m_models=models, beta_schedule="use existing", **windows)

    def _module(self, name: str):
        package = "animatediff_evolved"
        if package not in sys.modules:
            path = self.folder / "__init__.py"
            spec = importlib.util.spec_from_file_location(package, path, submodule_search_locations=[str(self.folder)])
            sys.modules[package] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[package])
        return importlib.import_module(f"{package}.animatediff.{name}")
