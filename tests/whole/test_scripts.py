"""The scripts that draw the documentation's pictures start as their docstrings say."""

import subprocess
import sys

import pytest
from coherence.hosting.provision import PACK


@pytest.mark.slow
@pytest.mark.parametrize("script", ["flow_pictures", "help_pictures", "thumbnails"])
def test_a_script_finds_what_it_imports(script, tmp_path):
    command = [sys.executable, PACK / "scripts" / f"{script}.py", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--comfyui" in done.stdout
