"""Which ComfyUI the pack wants, where that is said, and what an older one is told."""

import coherence
import pytest
from coherence.hosting.provision import NEWEST, PACK, RECIPES, Recipe
from forked import run_forked

LOAD = """
import asyncio, logging, sys
sys.path.insert(0, sys.argv[1])
import comfyui_version
comfyui_version.__version__ = sys.argv[2]
import comfy.options
from comfy.cli_args import args
args.cpu = True
import nodes
sys.modules["comfy.ldm.cogvideo.model"] = None  # as in 0.18
known = len(nodes.NODE_CLASS_MAPPINGS)
loaded = asyncio.run(nodes.load_custom_node(sys.argv[3]))
ours = [name for name in sys.modules if name.startswith(sys.argv[3])]
print("result:", loaded, len(nodes.NODE_CLASS_MAPPINGS) - known, len(ours))
"""
"""ComfyUI's own loader of packs, in a ComfyUI that takes itself for another version."""


@pytest.mark.parametrize("version", ["0.27.0", "0.30.2", "0.31.0", "0.100.0", "1.0.0", "v0.27.1-4-gabc"])
def test_a_comfyui_that_is_new_enough_is_taken(version):
    coherence.require_comfyui(version)


@pytest.mark.parametrize("version", ["0.3.75", "0.18.2", "0.26.9", "0.27", "v0.9.2-12-gabc"])
def test_an_older_comfyui_is_told_both_versions_and_what_to_do(version):
    with pytest.raises(RuntimeError, match=rf"needs ComfyUI >= 0\.27\.0, this is {version}: update ComfyUI"):
        coherence.require_comfyui(version)


@pytest.mark.slow
def test_an_older_comfyui_logs_that_message_in_place_of_an_import_error(comfyui_path, tmp_path):
    script, log = tmp_path / "load.py", tmp_path / "log"
    script.write_text(LOAD)
    code = run_forked([script, comfyui_path, "0.18.2", PACK], comfyui_path, log)
    printed = log.read_text("utf-8")
    assert code == 0, printed
    assert "result: False 0 1" in printed, "a node, or a module beside the pack's first, was loaded"
    told = [line for line in printed.splitlines() if str(PACK) in line]
    assert len(told) == 1
    assert told[0].endswith(": ComfyUI-Coherence needs ComfyUI >= 0.27.0, this is 0.18.2: update ComfyUI")


def test_the_oldest_comfyui_is_the_same_wherever_it_is_told():
    oldest = coherence.OLDEST_COMFYUI
    assert f'requires-comfyui = ">={oldest}"\n' in (PACK / "pyproject.toml").read_text("utf-8")
    assert f"ComfyUI {oldest} or newer" in (PACK / "README.md").read_text("utf-8")
    assert oldest in RECIPES
    for version in RECIPES:
        coherence.require_comfyui(version)


def test_each_prepared_comfyui_has_a_folder_of_its_own():
    recipes = list(RECIPES.values())
    assert len({recipe.key() for recipe in recipes}) == len(recipes)
    assert [version for version, recipe in RECIPES.items() if not recipe.key().startswith(f"{version}-")] == []
    assert all(isinstance(recipe, Recipe) and len(recipe.sha256) == 64 for recipe in recipes)
    assert NEWEST == "0.30.0"
