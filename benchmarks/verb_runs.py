"""Verbs of the command line as the steps of an experiment that may be broken off."""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from voxelquant.recipes.artifacts import write_json_atomic

CHECKOUT = Path(__file__).resolve().parents[1]
Verb = tuple[str, Sequence[object]]  # result under the folder, words after `voxelquant`


class VerbRuns:
    """Runs verbs whose results are not there yet, and keeps their command lines and seconds.

    Args:
        folder: of the experiment.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "commands.json"

    @property
    def commands(self) -> list[dict[str, Any]]:
        """What was run, and the seconds that it took."""
        return json.loads(self._path.read_text()) if self._path.exists() else []

    def run(self, result: str, *words: object) -> None:
        """Run one verb; ends the program if it fails."""
        self.run_together([(result, words)])

    def run_together(self, verbs: Sequence[Verb], at_once: int = 1) -> None:
        """Run some verbs, a few at a time; ends the program if one fails."""
        wanted = [verb for verb in verbs if not (self.folder / verb[0]).exists()]
        with ThreadPoolExecutor(at_once) as threads:
            for record in threads.map(lambda verb: self._run(*verb, alone=at_once == 1), wanted):
                write_json_atomic(self._path, [*self.commands, record])

    def _run(self, result: str, words: Sequence[object], *, alone: bool) -> dict[str, Any]:
        given = [str(word) for word in words]
        # The folder's own name says nothing, and may be nobody's business.
        line = shlex.join(["voxelquant", *given]).replace(str(self.folder), "FOLDER")
        line = line.replace(f"{CHECKOUT}/", "")
        print(line, flush=True)
        started = time.perf_counter()
        command = [sys.executable, "-m", "voxelquant", *given]
        heard = None if alone else subprocess.PIPE
        done = subprocess.run(command, stdout=heard, stderr=heard, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{line}\n{(done.stderr or '')[-2000:]}")
        assert (self.folder / result).exists(), f"{line}: no {result}"
        return {"command": line, "seconds": round(time.perf_counter() - started, 1)}
