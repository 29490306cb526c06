"""The distribution as users install it: recipes are found without a checkout."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "-o", str(out), str(ROOT)], check=True, capture_output=True
    )
    (path,) = out.glob("longhaul-*.whl")
    return path


def test_it_holds_both_packages_the_recipes_and_the_licence(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"finetune/train.py", "data_tools/build.py", "finetune/conf/hyperfusion.yaml"} <= names
    assert {"finetune/conf/model/sd15.yaml", "finetune/conf/strategy/zero2.yaml"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "shared", "docs"))]


def test_recipes_are_found_when_installed(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    # -S keeps the checkout, which is installed for development, out of the path; the packages needed come back by hand.
    program = (
        f"import sys; sys.path[:0] = [{str(site)!r}, {sysconfig.get_path('purelib')!r}];"
        "import runpy, finetune; print(finetune.__file__);"
        "sys.argv = ['finetune', 'conf=hyperfusion', '--cfg', 'job']; runpy.run_module('finetune', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
    assert "clip_skip: 2" in done.stdout
