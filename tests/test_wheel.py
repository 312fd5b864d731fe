"""The wheel, installed away from the source tree, needs no torch library, no CUDA and no driver.

LAMPFAST_WHEEL names a wheel to test instead of building one, and LAMPFAST_EXPECT_CUDA (ON or OFF)
says whether that one must have the CUDA engine. LAMPFAST_SECOND_TORCH names a Python that has
another version of torch (and numpy), to run the same wheel with it.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent
CHECK = """
import sys
# An editable install's finder would find the source tree first.
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
from pathlib import Path
import lampfast, lampfast._core, torch
assert Path(lampfast.__file__).is_relative_to({folder!r}), lampfast.__file__
assert not torch.cuda.is_available()
weight = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
report = lampfast.prune({{"fc": weight}}, 0.5)
assert weight.tolist() == [[0.0, -2.0], [3.0, 0.0]], weight
assert report.kept == 2
core = lampfast._core
assert not core.cuda_usable()  # nor does it need a driver to be there
print(torch.__version__, lampfast.__version__, core.__version__, core.cuda_built)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "LAMPFAST_WHEEL" in os.environ:
        return Path(os.environ["LAMPFAST_WHEEL"]).resolve()
    folder = tmp_path_factory.mktemp("wheel")
    _run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", SOURCE, "-w", folder),
        f"--config-settings=build-dir={folder / 'build'}",
    )
    (wheel,) = folder.glob("lampfast-*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    _run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, wheel)
    return folder


def test_it_carries_the_types_and_no_sources(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {"lampfast/py.typed", "lampfast/_core.pyi"} <= set(names)
    assert not [name for name in names if not name.startswith(("lampfast/", "lampfast-"))]


@pytest.mark.skipif(sys.platform != "linux", reason="readelf reads Linux's libraries")
def test_it_links_neither_torch_nor_cuda(installed: Path) -> None:
    assert shutil.which("readelf"), "install binutils: the compiler's own package brings it"
    (extension,) = (installed / "lampfast").glob("_core*.so")
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", _run("readelf", "-d", extension))
    # What the C++ runtime and any Linux have; nothing that a wheel would have to bring along.
    system = {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
    system |= {f"lib{name}.so" for name in ("c", "m", "dl", "rt", "gcc_s", "stdc++", "pthread")}
    assert {re.sub(r"(?<=\.so)\.\d+$", "", name) for name in needed} <= {
        re.sub(r"(?<=\.so)\.\d+$", "", name) for name in system
    }


def test_it_works_without_a_driver(installed: Path) -> None:
    _check(sys.executable, installed)


def test_its_versions_agree(installed: Path, wheel: Path) -> None:
    _, package, extension, _ = _check(sys.executable, installed).split()
    assert package == extension == wheel.name.split("-")[1]


@pytest.mark.skipif("LAMPFAST_EXPECT_CUDA" not in os.environ, reason="no such wheel is given")
def test_it_has_the_engines_asked_for(installed: Path) -> None:
    *_, cuda_built = _check(sys.executable, installed).split()
    assert cuda_built == str(os.environ["LAMPFAST_EXPECT_CUDA"] == "ON")


@pytest.mark.skipif(
    "LAMPFAST_SECOND_TORCH" not in os.environ,
    reason="LAMPFAST_SECOND_TORCH names no Python that has another torch",
)
def test_it_works_with_a_second_torch(installed: Path) -> None:
    second, *_ = _check(os.environ["LAMPFAST_SECOND_TORCH"], installed).split()
    assert second != distribution("torch").version


def _check(python: str, folder: Path) -> str:
    """Prunes with the installed wheel, away from the source tree, on a machine without a GPU."""
    return _run(
        *(python, "-c", CHECK.format(folder=str(folder))),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": ""},
    )


def _run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_source_folder_says_what_it_lacks(tmp_path: Path) -> None:
    """As where Python is started in a checkout whose package was installed without -e."""
    shutil.copytree(SOURCE / "lampfast", tmp_path / "lampfast", ignore=lambda *_: ["_core.pyi"])
    for compiled in (tmp_path / "lampfast").glob("_core*"):
        compiled.unlink()
    program = "import sys; sys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not"
    program += " in type(finder).__module__]; import lampfast"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode
    assert "ImportError" in done.stderr
    assert "has no compiled extension" in done.stderr
    assert "pip install -e ." in done.stderr
