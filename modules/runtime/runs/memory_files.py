"""The memory that a run of stage 2 is searched with: its tables, and the weights that they were made with."""

import json
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file, save

from data.io.files import write_whole
from data.schemas import UserError
from modules.memory import Memory, MemoryConfig

MEMORY, MEMORY_CONFIG = "memory.safetensors", "memory.json"


def save_memory(folder: Path, memory: Memory) -> None:
    """Writes all that ``load_memory`` needs: counts of the training part and directions of the texts, nothing of single users."""
    write_whole(folder / MEMORY, save({name: table.cpu().contiguous() for name, table in memory.state_dict().items()}))
    write_whole(folder / MEMORY_CONFIG, json.dumps(asdict(memory.config), indent=1))


def load_memory(folder: Path, num_items: int) -> Memory:
    """Reads what ``save_memory`` wrote.

    Raises:
        UserError: no memory there, a damaged one, or one of other items.
    """
    try:
        memory = Memory.from_state(load_file(folder / MEMORY), MemoryConfig(**json.loads((folder / MEMORY_CONFIG).read_text())))
    except Exception as error:  # safetensors raises errors of several kinds
        raise UserError(
            f"the run in {folder} is searched with a memory, and its {MEMORY} or {MEMORY_CONFIG} cannot be read ({error}); copy them again"
        ) from error
    if memory.num_items != num_items:
        raise UserError(f"the memory in {folder} is of {memory.num_items:,} items, the run of {num_items:,}; copy {MEMORY} again")
    return memory
