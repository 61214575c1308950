"""What is built and installed is complete, and says of itself what is true."""

import ast
import configparser
import graphlib
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from code_size import LIMITS, numbers

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
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(listing, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def wheel(built: Path) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        yield archive


def test_a_wheel_away_from_the_checkout_finds_its_properties(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "installed")
    command = [sys.executable, "-c", USE, str(tmp_path / "installed")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    ours = ROOT / "properties"
    assert done.stdout.split() == sorted(path.relative_to(ours).as_posix() for path in ours.rglob("*.yaml"))


def test_a_wheel_has_one_top_level_name_the_command_and_the_templates_of_reports(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    entry_points = next(wheel.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"recbole_sigma"}
    assert "recbole-sigma = recbole_sigma.cli:main" in entry_points
    assert any(name.endswith("licenses/LICENSE") for name in names)
    templates = {path.relative_to(ROOT).as_posix() for path in (ROOT / "recbole_sigma").rglob("*.j2")}
    assert {name for name in names if name.endswith(".j2")} == templates


def test_an_sdist_has_what_a_checkout_needs(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = "properties/overall.yaml run_recbole_sigma.py hyper.test constraints.txt setup.cfg LICENSE"
    assert set(wanted.split()) <= names


def test_every_folder_of_modules_has_its_init_and_its_line_in_setup_cfg() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    folders = {path.parent for path in (ROOT / "recbole_sigma").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(setup["options"]["packages"].split()) == {*packages, "recbole_sigma.properties"}


# --- which module imports which (DESIGN, section 2)

# From low to high. A module imports modules of its own group and of lower ranks; groups of one rank know nothing of
# each other.
RANKS = [
    ["errors", "data.items"], ["runs.files", "config.values"], ["compat"], ["ops"], ["layers", "convert"], ["model"],
    ["registry", "evaluation", "environment"],
    ["config"], ["data"], ["runs"], ["training"], ["quick_start"], ["experiment", "report"], ["inference"],
    ["commands"], ["cli"],
]  # fmt: skip


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
    used = {module: names for module, names in imports().items() if module.startswith(("config", "data"))}
    assert {"config.config", "data.dataset"} <= {*used}
    assert [name for names in used.values() for name in names if group(name) in ("model", "layers", "ops")] == []


def test_a_training_run_needs_few_modules() -> None:
    command = [sys.executable, "-c", "import sys, recbole_sigma.quick_start; print(*sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    ours = {name for name in done.stdout.split() if f"{name}.".startswith("recbole_sigma.")}
    needed = {name for name in ours if not name.startswith(("recbole_sigma.layers", "recbole_sigma.ops"))}
    assert "recbole_sigma.quick_start" in needed and len(needed) <= 27, sorted(needed)


def test_package_tests_and_benchmarks_stay_small() -> None:
    assert {name: size for name, size in numbers().items() if size > LIMITS.get(name, size)} == {}
