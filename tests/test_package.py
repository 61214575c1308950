"""What is built and installed is complete, and says of itself what is true."""

import ast
import configparser
import graphlib
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


# --- which module imports which (DESIGN, section 2)

# From low to high. A module imports modules of its own group and of lower ranks; groups of one rank know nothing of
# each other.
RANKS = [
    ["errors", "compat", "data.items"],
    ["ops"],
    ["layers"],
    ["model"],
    ["registry", "evaluation", "environment"],
    ["config"],
    ["data"],
    ["runs"],
    ["training"],
    ["quick_start"],
    ["experiment", "report"],
    ["commands"],
    ["cli"],
]


def imports() -> dict[str, set[str]]:
    """The modules of ours that each module imports, anywhere but under TYPE_CHECKING, without `recbole_sigma.`."""
    files = {
        ".".join(path.relative_to(ROOT / "recbole_sigma").with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / "recbole_sigma").rglob("*.py")
    }
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = []
        names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}: a relative import"
                names += [f"{node.module}.{alias.name}" for alias in node.names]
        ours = [name.removeprefix("recbole_sigma.") for name in names if name.startswith("recbole_sigma.")]
        found[module] = {name if name in files else name.rpartition(".")[0] for name in ours} - {"", module}
    return found


def group(module: str) -> str:
    """The entry of RANKS that a module belongs to."""
    names = [name for rank in RANKS for name in rank if f"{module}.".startswith(f"{name}.")]
    return max(names, key=len)


def test_no_module_imports_upwards_or_in_a_circle() -> None:
    rank = {name: number for number, names in enumerate(RANKS) for name in names}
    graph = {module: used for module, used in imports().items() if module != "__init__"}
    upwards = [
        f"{module} imports {each}"
        for module, used in graph.items()
        for each in used
        if group(each) != group(module) and rank[group(each)] >= rank[group(module)]
    ]
    assert upwards == []
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_data_and_config_know_no_model() -> None:
    known = {
        (module, each) for module, used in imports().items() for each in used if group(module) in ("config", "data")
    }
    assert [pair for pair in known if group(pair[1]) in ("model", "layers", "ops")] == []


def test_a_training_run_needs_few_modules() -> None:
    code = (
        "import sys, recbole_sigma.quick_start; print(*(name for name in sys.modules if name.startswith('recbole_')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    modules = [
        name for name in done.stdout.split() if not name.startswith(("recbole_sigma.layers", "recbole_sigma.ops"))
    ]
    read = [name for name in modules if not (ROOT / Path(*name.split("."))).is_dir()]  # packages are empty
    assert len(read) <= 26, sorted(read)
