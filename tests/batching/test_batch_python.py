"""batch.py on a Python without packages: it goes on in ComfyUI's, or says what to install."""

import site
import subprocess
import sys

import pytest
from batch_prompts import slow, start, write
from coherence.client.pythons import python_in

BARE = (sys.executable, "-S", "-E")


def comfyui_with_python(folder):
    """A ComfyUI's folder, and the Python beside it, which has the packages of this one."""
    environment = folder / "ComfyUI" / "venv"  # where host.py prepares one, too
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (packages,) = environment.rglob("site-packages")
    (packages / "these.pth").write_text("\n".join(site.getsitepackages()), "utf-8")
    return str(folder / "ComfyUI"), python_in(environment)


def run(folder, *more, **env) -> tuple[int, str]:
    arguments = write(folder, slow(64, 1), {"list": {"Colour.color": [1]}})
    env = {"COMFYUI_PATH": "", "COHERENCE_CACHE": str(folder / "cache")} | env
    batch = start(*arguments, "--server", "http://127.0.0.1:9", *more, python=BARE, **env)
    told, _ = batch.communicate(timeout=120)
    return batch.returncode, told


def test_a_bare_python_goes_on_in_comfyuis(tmp_path):
    comfyui, python = comfyui_with_python(tmp_path)
    code, told = run(tmp_path, COMFYUI_PATH=comfyui)
    assert f"this Python lacks aiohttp and tqdm; going on with {python}" in told
    assert "No ComfyUI answers at http://127.0.0.1:9" in told
    assert code == 1


def test_a_bare_python_goes_on_in_the_one_that_host_py_prepared(tmp_path):
    _, python = comfyui_with_python(tmp_path / "cache" / "hosts")
    code, told = run(tmp_path)
    assert f"going on with {python}" in told
    assert code == 1


@pytest.mark.parametrize("more", [(), ("--ray",)])
def test_where_there_is_none_it_says_what_to_install(tmp_path, more):
    code, told = run(tmp_path, *more)
    assert f"{sys.executable} -m pip install aiohttp tqdm" in told
    assert "Traceback" not in told
    assert code == 1
