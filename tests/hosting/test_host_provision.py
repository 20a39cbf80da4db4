"""Provisioning with a tiny stand-in package: real pip, real uv, real archives and processes, no network."""

import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from coherence.hosting.archive import extract
from coherence.hosting.errors import HostError
from coherence.hosting.provision import PACK, Recipe, provision
from coherence.hosting.tools import installers
from coherence.hosting.workspace import link_folder

pytestmark = pytest.mark.slow

BACKEND = """
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    import os
    os.mkdir(os.path.join(folder, "tiny_comfy-1.0.dist-info"))
    with open(os.path.join(folder, "tiny_comfy-1.0.dist-info", "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: tiny-comfy\\nVersion: 1.0\\n")
    return "tiny_comfy-1.0.dist-info"
def build_wheel(*_):
    raise SystemExit("only the source is wanted")
"""
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
PROVISION = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import _enter_pack
_enter_pack.enter()
from coherence.hosting.errors import HostError
from coherence.hosting.provision import Recipe, provision
recipe = Recipe(**json.loads(sys.argv[3]))
try:
    print(provision(Path(sys.argv[2]), recipe).comfyui)
except HostError as error:
    sys.exit(str(error))
"""


def write_tar(path: Path, files: dict[str, bytes | tarfile.TarInfo]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            body = content if isinstance(content, bytes) else b""
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))


@pytest.fixture(scope="module")
def tools(tmp_path_factory) -> Path:
    """pip and uv, made once for the tests of this file."""
    cache = tmp_path_factory.mktemp("cache")
    installers(cache)
    return cache / "tools"


@pytest.fixture
def cache(tools, tmp_path) -> Path:
    """An empty cache folder, but for the tools."""
    (tmp_path / "cache").mkdir()
    if tools.exists():
        link_folder(tmp_path / "cache" / "tools", tools)
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder of packages that pip and uv are told to use, and nothing else."""
    folder = tmp_path / "index"
    folder.mkdir()
    files = {
        "PKG-INFO": b"Metadata-Version: 2.1\nName: tiny-comfy\nVersion: 1.0\n",
        "pyproject.toml": PYPROJECT.encode(),
        "backend.py": BACKEND.encode(),
        "vendor/ComfyUI/main.py": b"print('a tiny ComfyUI')\n",
        "vendor/ComfyUI/requirements.txt": b"# nothing\n",
        "vendor/elsewhere/secret.txt": b"not to be taken",
    }
    write_tar(folder / "tiny_comfy-1.0.tar.gz", {f"tiny_comfy-1.0/{name}": body for name, body in files.items()})
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "UV_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)
    return folder


def recipe(index: Path, **changes: object) -> dict:
    sha256 = hashlib.sha256((index / "tiny_comfy-1.0.tar.gz").read_bytes()).hexdigest()
    plain = {"version": "0.0.1", "package": "tiny-comfy", "package_version": "1.0", "sha256": sha256}
    return plain | {"pins": (), "requirements": (), "needed_bytes": 0} | changes


def start(cache: Path, recipe: dict) -> subprocess.Popen:
    command = [sys.executable, "-c", PROVISION, PACK, cache, json.dumps(recipe)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_at_once_build_one_host_and_both_get_it(index, cache):
    runs = [start(cache, recipe(index)) for _ in range(2)]
    results = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], results
    (first, _), (second, _) = results
    assert first == second
    built = [log for _, log in results if "1/2 downloading" in log]
    assert len(built) == 1
    comfyui = Path(first.strip())
    assert (comfyui / "main.py").is_file()
    assert [path.name for path in comfyui.parent.parent.iterdir()] == [comfyui.parent.name]
    assert not list(cache.rglob("secret.txt"))


def test_a_build_killed_halfway_is_cleared_away_and_done_again(index, cache):
    tiny = recipe(index)
    run = start(cache, tiny)
    while not list(cache.glob("hosts/*.building/*")):
        assert run.poll() is None, run.communicate()
        time.sleep(0.01)
    run.kill()
    run.communicate()
    assert not [path for path in cache.glob("hosts/*") if path.suffix != ".building"], "killed too late to matter"
    host = provision(cache, Recipe(**tiny))
    assert subprocess.run([host.python, host.comfyui / "main.py"], capture_output=True, text=True).stdout
    assert not list(cache.glob("hosts/*.building"))


def test_a_host_whose_python_has_gone_is_built_anew(index, cache):
    tiny = Recipe(**recipe(index))
    host = provision(cache, tiny)
    host.python.unlink()
    assert provision(cache, tiny) == host
    assert host.python.exists()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sha256": "0" * 64}, "do not match|DO NOT MATCH"),
        ({"needed_bytes": 10**18}, "GB free, ComfyUI with PyTorch needs"),
        ({"package_version": "2.0"}, "No matching distribution"),
    ],
)
def test_what_cannot_be_built_is_said_and_leaves_nothing(index, cache, changes, complaint):
    with pytest.raises(HostError, match=complaint):
        provision(cache, Recipe(**recipe(index, **changes)))
    assert not list((cache / "hosts").iterdir())


def test_no_network_is_called_by_its_name(index, cache, monkeypatch):
    for name in [name for name in os.environ if name.upper().startswith(("PIP_", "HTTP_PROXY", "ALL_PROXY"))]:
        monkeypatch.delenv(name)  # another index or a proxy of this machine's would answer
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # nobody else can listen on a port that is taken, and this one does not
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/simple")
        with pytest.raises(HostError, match="no network"):
            provision(cache, Recipe(**recipe(index)))


def link(name: str, kind: bytes, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("package/../../escaped", b"out"),
        ("package/a\\..\\..\\escaped", b"out"),
        ("package/C:escaped", b"out"),
        ("package/link", link("package/link", tarfile.SYMTYPE, "../../escaped")),
        ("package/hard", link("package/hard", tarfile.LNKTYPE, "/etc/hostname")),
        ("package/pipe", link("package/pipe", tarfile.FIFOTYPE, "")),
    ],
)
def test_an_archive_that_could_write_elsewhere_is_refused_whole(tmp_path, name, content):
    archive, target = tmp_path / "evil.tar.gz", tmp_path / "in" / "target"
    write_tar(archive, {"package/good": b"fine", name: content})
    with pytest.raises(HostError, match="nothing was extracted"):
        extract(archive, "package", target)
    assert not target.exists()
    assert not list(tmp_path.rglob("escaped*"))


def test_only_the_subtree_is_extracted_byte_for_byte(tmp_path):
    archive = tmp_path / "a.tar.gz"
    files = {
        "p/v/x.bin": bytes(range(256)),
        "p/v/deep/er/y": b"",
        "p/vv/no": b"no",
        "p/no": b"no",
        "/p/v/no": b"no",
    }
    write_tar(archive, files)
    extract(archive, "p/v", tmp_path / "out")
    written = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert written == {"x.bin": bytes(range(256)), "deep/er/y": b""}
    with pytest.raises(HostError, match="no folder 'p/w'"):
        extract(archive, "p/w", tmp_path / "out")
