"""A server that is killed while it saves or trains leaves whole files alone, and the next one works in its folder;
no request makes it read or write elsewhere.

The suite kills one server that saves and one that trains. More, at other moments, seeded:
``COHERENCE_KILLS=10 python3 host.py test -n 0 tests/whole/test_server_faults.py``.
"""

import os
import random
import re
import time
from pathlib import Path

import pytest
from coherence.files import ge_adapter_file, registry_file, weights_file
from coherence.hosting.errors import HostError
from coherence.hosting.server import PromptError
from forked import ForkedServer, host_of
from prompts_for_tuning import graph, link

SAVES = 40  # of each kind
LOADERS = ("LoadAttentionRegistry", "LoadSTAM", "LoadGEAdapter")
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


def node(class_type, /, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def saving(count, run):
    """Every kind of file, ``count`` times, under names of this ``run``."""
    prompt = {
        "demo": node("CoherenceDemoModel", kind="shapes"),
        "registry": node("SelectAttentionLayers", model=link("demo"), layers="*"),
        "weights": node("LoadSTAM", file="(example) red_star.stam.safetensors"),
        "adapter": node("LoadGEAdapter", file="(example) three_clips.ge_adapter.safetensors"),
    }
    savers = {"registry": "SaveAttentionRegistry", "weights": "SaveSTAM", "adapter": "SaveGEAdapter"}
    for i in range(count):
        for name, kind in savers.items():
            prompt[f"{name}{i}"] = node(kind, filename_prefix=f"loras/{run}_{i}", **{name: link(name)})
    return prompt


def adapting(steps):
    return {
        "demo": node("CoherenceDemoModel", kind="shapes"),
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
        with pytest.raises(HostError, match=r"(?s)died with exit code.*got prompt"):
            server.queue(prompt(steps=1_000), watch)
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


def offered(server):
    """What the loaders' menus list, and those of ComfyUI's LoRA loader."""
    nodes = server.object_info()
    required = [nodes[name]["input"]["required"] for name in (*LOADERS, "LoraLoader")]
    return [str(each.get("file") or each["lora_name"]) for each in required]


# Kills --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(int(os.environ.get("COHERENCE_KILLS", "1"))))
def test_a_kill_leaves_whole_files_alone_and_the_next_server_works(comfyui_path, tmp_path, seed):
    chance = random.Random(seed)
    host = host_of(comfyui_path)
    kills = {
        "save": kill_while_saving,
        "tune": kill_while_training(graph),
        "adapt": kill_while_training(adapting),
    }
    for run in ("save", ("tune", "adapt")[seed % 2]):
        with ForkedServer(host, tmp_path) as doomed:
            assert all(".part" not in each for each in offered(doomed))
            assert doomed.queue(saving(1, f"before_{run}"))["status"]["status_str"] == "success"
            kills[run](doomed, chance, f"during_{run}")
        require_whole(tmp_path)
        assert all(path.suffix == ".part" for path in leftovers(tmp_path))
        print(f"seed {seed}, {run}: {len(files(tmp_path))} whole files, left over: {leftovers(tmp_path)}")


# Requests -----------------------------------------------------------------------------------------------------------

TRAVERSALS = [
    "../../etc/passwd",
    "/etc/passwd",
    "..\\..\\windows\\win.ini",
    "C:\\windows\\win.ini",
    "\\\\host\\share\\x",
    "a\0b",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "loras/..%2f..%2fx",
]


def tree(base):
    return sorted(path for name in ("output", "models", "input") for path in Path(base, name).rglob("*"))


@pytest.mark.parametrize("place", TRAVERSALS)
def test_a_request_that_leads_outside_is_refused_by_every_node_before_anything_runs(server, place):
    before = tree(server.base)
    prompt = saving(1, "x")
    for name in ("registry0", "weights0", "adapter0"):
        prompt[name]["inputs"]["filename_prefix"] = place
    with pytest.raises(PromptError) as refused:
        server.queue(prompt)
    for name in ("SaveAttentionRegistry", "SaveSTAM", "SaveGEAdapter"):
        assert re.search(rf"\({name}\): .*outside the output folder", str(refused.value))
    prompt = saving(1, "x")
    prompt["registry"] = node("LoadAttentionRegistry", file=place)
    prompt["weights"]["inputs"]["file"] = prompt["adapter"]["inputs"]["file"] = place
    with pytest.raises(PromptError) as refused:
        server.queue(prompt)
    for name in LOADERS:
        assert re.search(rf"\({name}\): .*expected .* in the output folder, got", str(refused.value))
    assert tree(server.base) == before


@pytest.mark.parametrize("value", [None, 5, True, {}, ["x"], ["registry", 0, 0], "x" * 100_000])
def test_a_name_that_is_none_is_refused_by_every_loader(server, value):
    before = tree(server.base)
    prompt = saving(1, "x")
    prompt["registry"] = node("LoadAttentionRegistry", file=value)
    prompt["weights"]["inputs"]["file"] = prompt["adapter"]["inputs"]["file"] = value
    with pytest.raises(PromptError):
        server.queue(prompt)
    assert tree(server.base) == before


def test_after_a_save_that_failed_nothing_is_computed_again(server):
    """As the error promises."""
    blocked = server.base / "output" / "blocked"
    blocked.write_bytes(b"not a folder")
    prompt = graph(seed=77)
    prompt["save"]["inputs"]["filename_prefix"] = "blocked/x"
    try:
        with pytest.raises(PromptError, match=r"\(SaveSTAM\): OSError: .* cached results are reused"):
            server.queue(prompt)
    finally:
        blocked.unlink()
    messages = dict(server.queue(prompt)["status"]["messages"])
    assert {"demo", "inflate", "tune"} <= set(messages["execution_cached"]["nodes"])
