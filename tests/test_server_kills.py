"""A server that is killed while it saves or trains leaves whole files alone, and the next one works in its folder.

The suite kills one server at each kind of work. More, at other moments, seeded:
``COHERENCE_KILLS=10 python3 host.py test -n 0 tests/test_server_kills.py``.
"""

import os
import random
import time
from pathlib import Path

import pytest
from coherence.attention import registry_file, weights_file
from coherence.hosting.errors import HostError
from coherence.hosting.server import Server
from coherence.training import ge_adapter_file
from test_one_shot_nodes import graph, link

SAVES = 100  # of each kind
LOADS = {each.SUFFIX: each.load for each in (registry_file, weights_file, ge_adapter_file)}
TRAINING = {
    "frames_per_clip": 3,
    "captions": "",
    "rank": 4,
    "layers": "down",
    "shared_tokens": 8,
    "temporal_weight": 0.01,
    "diffusion_weight": 1.0,
    "temporal_range_start": 0.5,
    "learning_rate": 1e-3,
    "warmup_steps": 0,
    "gradient_accumulation": 1,
    "seed": 0,
}


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def saving(count, run):
    """Every kind of file, ``count`` times, under names of this ``run``."""
    prompt = {
        "demo": node("CoherenceDemoModel", kind="image"),
        "registry": node("SelectAttentionLayers", model=link("demo"), layers="*"),
        "weights": node("LoadSTAM", file="(example) red_star.stam.safetensors"),
        "adapter": node("LoadGEAdapter", file="(example) three_clips.ge_adapter.safetensors"),
    }
    savers = {"registry": "SaveAttentionRegistry", "weights": "SaveSTAM", "adapter": "SaveGEAdapter"}
    for i in range(count):
        for name, kind in savers.items():
            prompt[f"{name}{i}"] = node(kind, filename_prefix=f"loras/{run}_{i}", **{name: link(name)})
    return prompt


def tuning(steps):
    return graph(steps=steps)


def adapting(steps):
    return {
        "demo": node("CoherenceDemoModel", kind="image"),
        "frames": node(
            "CoherenceDemoClip",
            shape="circle",
            colour="red",
            background="white",
            motion="slide",
            frames=3,
            size=128,
            seed=1,
        ),
        "clips": node("VAEEncode", pixels=link("frames"), vae=link("demo", 2)),
        "tune": node(
            "GEAdapterTrain", model=link("demo"), clip=link("demo", 1), clips=link("clips"), steps=steps, **TRAINING
        ),
        "save": node("SaveGEAdapter", adapter=link("tune"), filename_prefix="loras/trained"),
    }


def kill_while_saving(server, chance, run):
    """Once some of the files are there, at a moment of the next write."""
    some = chance.randint(1, 2 * SAVES)
    server.post("/prompt", {"prompt": saving(SAVES, run)})
    deadline = time.monotonic() + 120
    while len(files(server.base, f"{run}_*")) < some:
        assert time.monotonic() < deadline, server.log_tail()
    time.sleep(chance.uniform(0, 0.01))
    kill(server)
    assert len(files(server.base, f"{run}_*")) < 3 * SAVES, "it was killed too late to see anything"


def kill_while_training(prompt):
    def run(server, chance, _):
        step = chance.randint(1, 4)

        def watch(name, value, _):
            if name == "tune" and value >= step:
                server.process.kill()

        before = files(server.base)
        with pytest.raises(HostError, match="died with exit code"):
            server.queue(prompt(100_000), watch)
        assert files(server.base) == before

    return run


def kill(server):
    server.process.kill()
    server.process.wait()


def files(base, pattern="*"):
    """Those in the output folder that a loader takes."""
    return sorted(path for path in Path(base, "output").rglob(pattern) if path.name.endswith(tuple(LOADS)))


def require_whole(base):
    for path in files(base):
        next(load for suffix, load in LOADS.items() if path.name.endswith(suffix))(path)


def leftovers(base):
    """What is neither a whole file nor what ComfyUI puts there."""
    found = [path for path in Path(base, "output").rglob("*") if path.is_file()]
    return [path for path in found if path not in files(base) and path.name != "_output_images_will_be_put_here"]


@pytest.mark.parametrize("seed", range(int(os.environ.get("COHERENCE_KILLS", "1"))))
def test_a_kill_leaves_whole_files_alone_and_the_next_server_works(server, tmp_path, seed):
    chance = random.Random(seed)
    kills = [kill_while_saving, kill_while_training(tuning), kill_while_training(adapting)]
    for count, kill_it in enumerate(chance.sample(kills, 3)):
        with Server(server.host, tmp_path) as doomed:
            doomed.queue(saving(1, f"works{count}"))
            kill_it(doomed, chance, f"killed{count}")
        require_whole(tmp_path)
        print(f"seed {seed}: {kill_it.__name__}, {len(files(tmp_path))} files, left over: {leftovers(tmp_path)}")
        assert all(path.suffix == ".part" for path in leftovers(tmp_path))
