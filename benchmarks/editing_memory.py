"""Peak memory of an edit against plain sampling of source and target together, over the number of frames.

    python benchmarks/editing_memory.py --comfyui DIR [--frames 8 16 32 64] [--size 128] [--out FOLDER]

The demo model at ``--size`` pixels, every layer replaced. Plain: the same four branches a step (CFG of two clips, as a
batch of twice the frames), by ComfyUI's own sampling. Counted are the tensors that live at once, beside the model's
weights, and not what an operator needs while it runs. The attention is PyTorch's, as on GPUs. ``blend`` is FateZero's,
with one more branch a step and two calls of each replaced attention; ``s`` are seconds, on a CPU its own, the least of
three.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from claims import Cost
from figures import table
from harness import Json, command_line, empty, enter, pack, peak_of, sampling, save, take_turns

WORDS = ("a small red star on a white background", "a blue pentagon on a white background")


def editing(model: object, frames: int, side: int, replace: str = "map") -> Callable[[], None]:
    """Two steps of an edit."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    editing, sampler = pack("samplers.editing"), comfy.samplers.sampler_object("euler")
    generator, sigmas = torch.Generator().manual_seed(0), torch.tensor([10.0, 1.0, 0.0])
    clip = pack("demo.model").load_clip()
    source, target, alignment, _ = pack("samplers.aligning").align_prompts(clip, *WORDS)
    prompts = editing.Prompts(source, target, [[torch.randn(1, 32, 128, generator=generator), {}]])
    words = None if replace == "map" else alignment
    edit = editing.Edit("*", replace, cfg=4.0, source_cfg=4.0, alignment=words)

    def run() -> None:
        start = (Noise_RandomNoise(0), sampler, sigmas, empty(frames, side))
        editing.sample_edit(model, prompts, edit, *start, "benchmark")

    return run


def costs(results: list[Json]) -> list[Cost]:
    longest = results[-1]
    what = f"Memory of an edit of {longest['frames']} frames, of plain sampling of both clips"
    both = f"of an edit with blend of {longest['frames']} frames, of plain sampling of both clips"
    return [
        Cost(what, f"{longest['edit'] / longest['plain']:.2f}", "1, no map is stored"),
        Cost(f"Memory {both}", f"{longest['blend'] / longest['plain']:.2f}", "at most 1.4, no map is stored"),
        Cost(f"Time {both}", f"{longest['blend s'] / longest['plain s']:.2f}", "1.25, and attention twice"),
    ]


def main() -> None:
    parser = command_line(__doc__, size=(128, "pixels, height and width"))
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16, 32, 64])
    arguments = parser.parse_args()
    enter(arguments, attention="pytorch")
    model, results = pack("demo.model").load_model(), []
    with torch.inference_mode():
        sampling(model, 1, 64)()  # loads the model
        for frames in arguments.frames:
            runs = {
                "plain": sampling(model, 2 * frames, arguments.size),
                "edit": editing(model, frames, arguments.size),
                "blend": editing(model, frames, arguments.size, "blend"),
            }
            peaks = {name: peak_of(run) for name, run in runs.items()}
            seconds = {f"{name} s": min(each) for name, each in take_turns(runs, 3).items()}
            results.append({"frames": frames, **peaks, **seconds})
    save(arguments.out, results)
    print(table(results[0], ([f"{value:.4g}" for value in each.values()] for each in results)))


if __name__ == "__main__":
    main()
