"""One check in a process of its own: ``python -m hpe.tools.gpucheck NAME FOLDER`` writes ``FOLDER/NAME.jsonl``."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from hpe.tools.gpucheck import CHECKS, DATA
from hpe.tools.gpucheck.place import Place


def main(name: str, folder: Path) -> None:
    """Run a check."""
    place = Place.load(folder)
    check = next(one for one in (DATA, *CHECKS) if one.name == name)
    with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as out:
        for row in check.run(place):  # written one by one: what is known outlives a crash
            out.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
            out.flush()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # all is written; threads of compilers and of CUDA could keep Python from ending
