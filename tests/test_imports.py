"""Who may import whom: the rooms of the tree, walked by their syntax."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("init", "distributions", "data", "modules", "evaluate")
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
COMMANDS = {"evaluate.compare", "evaluate.reproduce"}
"""Scripts that are run with ``python -m``: they import what they need."""
LOW = ("data.schemas", "data.io.files", "data.io.progress")
"""The files of data that everybody may import."""
NUMERIC = {"torch", "numpy", "einops"}
FRONT_DOOR = ("data.processed", "data.corpus", "data.splits", "data.statistics", "data.cooccurrence", "data.shell")
"""What the runtime may import of data: loaders, what they return, and how it is split and counted."""

EVALUATE = {"plots.py": {"matplotlib"}, "maps.py": {"matplotlib"}, "comparison.py": {"polars"}}
"""What a file of evaluate may import beside numbers."""

RUNTIME = {
    "gin.py": {"gin"},
    "grammar.py": {"gin"},
    "run.py": {"filelock", "matplotlib"},
    "tokenizer_evaluation.py": {"matplotlib"},
    "ranks_file.py": {"polars"},
    "light_gcn.py": {"torch_geometric"},
    "processes.py": {"accelerate"},
    "tracker.py": {"wandb", "matplotlib"},
    "hub.py": {"huggingface_hub"},
    "hub_names.py": {"huggingface_hub"},
    "model_card.py": {"huggingface_hub"},
}
"""What a file of the runtime may import beside numbers and safetensors."""


def sources() -> list[Path]:
    """Every file of the rooms, and the scripts."""
    return sorted(ROOT.glob("*.py")) + sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def room_of(module: str) -> str:
    """The room a dotted module name belongs to; schemas, the writing of files and the runtime are rooms of their own."""
    if module in COMMANDS:
        return "commands"
    for room in (*LOW, "modules.runtime"):
        if module == room or module.startswith(room + "."):
            return room
    return module.partition(".")[0]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_ours(module: str) -> bool:
    return module.partition(".")[0] in {*ROOMS, *SCRIPTS, "tests", "benchmarks"}


def imports_of(path: Path) -> set[str]:
    """Dotted names of all imports of a file, those inside functions too; ``from data import schemas`` counts as data.schemas."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                inside = ROOT.joinpath(*whole.split("."))
                found.add(whole if inside.with_suffix(".py").exists() or inside.is_dir() else node.module)
    return found


def outside(path: Path) -> set[str]:
    """Third-party packages a file imports."""
    tops = {module.partition(".")[0] for module in imports_of(path) if not is_ours(module)}
    return tops - set(sys.stdlib_module_names)


def ours(path: Path) -> set[str]:
    return {module for module in imports_of(path) if is_ours(module)}


def files_of(room: str) -> list[Path]:
    return [path for path in sources() if room_of(name_of(path)) == room]


@pytest.mark.parametrize("room", [*ROOMS, *LOW, "modules.runtime"])
def test_every_room_holds_files(room):
    assert files_of(room)


@pytest.mark.parametrize("room", ["init", "distributions", *LOW])
def test_the_lowest_rooms_import_numbers_and_the_schemas_only(room):
    for path in files_of(room):
        assert outside(path) <= (NUMERIC if room != "data.io.progress" else {"tqdm"}), path
        assert {room_of(module) for module in ours(path)} <= {room, "data.schemas"}, path


def test_modules_import_no_data_but_the_schemas_and_the_writing_of_files():
    for path in files_of("modules"):
        assert outside(path) <= {*NUMERIC, "safetensors"}, path
        assert {room_of(module) for module in ours(path)} <= {"init", "distributions", *LOW, "modules"}, path


def test_the_runtime_adds_the_processed_data_and_one_library_a_task():
    for path in files_of("modules.runtime"):
        assert outside(path) <= {*NUMERIC, "safetensors", *RUNTIME.get(path.name, ())}, path
        for module in ours(path):
            allowed = {"init", "distributions", *LOW, "modules", "modules.runtime", "evaluate"}
            assert room_of(module) in allowed or module in FRONT_DOOR, f"{path}: {module}"


def test_data_imports_data_only():
    for path in files_of("data"):
        assert {room_of(module) for module in ours(path)} <= {"data", *LOW}, path


def test_evaluation_is_handed_tensors():
    for path in files_of("evaluate"):
        assert outside(path) <= {*NUMERIC, *EVALUATE.get(path.name, ())}, path
        assert {room_of(module) for module in ours(path)} <= {"data.schemas", "evaluate"}, path


def test_nobody_imports_a_script():
    assert {"train_rqvae", "train_decoder", "recommend"} <= SCRIPTS
    for path in sources():
        assert not {module.partition(".")[0] for module in ours(path)} & (SCRIPTS | {"tests", "benchmarks"}), path
        assert not ours(path) & COMMANDS, path


def test_rooms_and_files_import_each_other_in_no_circle():
    rooms: dict[str, set[str]] = {}
    files: dict[str, set[str]] = {}
    for path in sources():
        name = name_of(path)
        files[name] = ours(path)
        rooms.setdefault(room_of(name), set()).update(room_of(module) for module in ours(path) if room_of(module) != room_of(name))
    for graph in (rooms, files):
        list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_the_model_loads_without_data_libraries_trackers_or_gin():
    heavy = ["sentence_transformers", "torch_geometric", "polars", "pandas", "wandb", "matplotlib", "gin"]
    code = f"import sys, modules.model; print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_tracking_sharing_and_pictures_load_their_libraries_when_used():
    code = (
        "import sys, evaluate.maps, modules.runtime.evaluation.tokenizer_evaluation\n"
        "import modules.runtime.runs.hub, modules.runtime.runs.tracker\n"
        "print([name for name in ('wandb', 'huggingface_hub', 'matplotlib') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
