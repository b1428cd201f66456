"""Which of torchrun's processes this one is; reads the environment and nothing else."""

import os


def process_count() -> int:
    """How many processes work together; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process is the one of its run that writes files and speaks to the user."""
    return process_count() == 1 or int(os.environ["RANK"]) == 0
