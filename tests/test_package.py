"""What is built and installed is complete, and says of itself what is true."""

import configparser
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).parents[1]

USE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import recbole_sigma
from recbole_sigma.config.config import Config, properties_path
from recbole_sigma.registry import model_names
here = Path(sys.argv[1])
assert Path(recbole_sigma.__file__).is_relative_to(here), recbole_sigma.__file__
assert properties_path() == here / "recbole_sigma" / "properties", properties_path()
for model in ("SIGMA", "GRU4Rec"):
    assert Config(model, "ml-100k")["valid_metric"] == "NDCG@10"
print(*sorted(path.relative_to(properties_path()).as_posix() for path in properties_path().rglob("*.yaml")))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist made from a copy of the checkout, and the wheel made from that sdist."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    # What git knows or would add: builds, runs and environments stay out.
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        capture_output=True, text=True, cwd=ROOT, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_a_wheel_away_from_the_checkout_finds_its_properties(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    target = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    done = subprocess.run(
        [sys.executable, "-c", USE, str(target)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    ours = ROOT / "properties"
    assert done.stdout.split() == sorted(path.relative_to(ours).as_posix() for path in ours.rglob("*.yaml"))


def test_a_wheel_has_one_top_level_name_and_the_command(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry_points = next(archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"recbole_sigma"}
    assert "recbole-sigma = recbole_sigma.cli:main" in entry_points
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_a_wheel_has_the_templates_of_reports(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "recbole_sigma").rglob("*.j2")}
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if name.endswith(".j2")} == ours


def test_an_sdist_has_what_a_checkout_needs(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        "properties/overall.yaml",
        "run_recbole_sigma.py",
        "hyper.test",
        "constraints.txt",
        "setup.cfg",
        "LICENSE",
    }
    assert wanted <= names


def test_setup_cfg_lists_every_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    assert listed == {*find_packages(str(ROOT), include=["recbole_sigma*"]), "recbole_sigma.properties"}


def test_no_folder_of_modules_lacks_its_init() -> None:
    folders = {path.parent for path in (ROOT / "recbole_sigma").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []
