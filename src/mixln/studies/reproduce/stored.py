"""Tables whose results lie in a folder."""

from __future__ import annotations

from pathlib import Path

from mixln.errors import InputError
from mixln.report.reproduction import Reproduction
from mixln.report.serialize import from_json
from mixln.studies.reproduce.specification import SCALES


def stored_tables(folder: Path) -> list[Reproduction]:
    """Return the tables whose results lie in a folder, papers in the order of the alphabet, scales from small to large.

    Raises:
        InputError: a file cannot be read.
    """
    found: list[Reproduction] = []
    paths = [path for scale in SCALES for path in (*folder.glob(f"*.{scale}.json"), *folder.glob(f"*/*.{scale}.json"))]
    for path in paths:
        try:
            found.append(from_json(path.read_text(encoding="utf-8"), Reproduction))
        except (InputError, OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read ({error}). Delete it, and make the table again") from error
    return sorted(found, key=lambda table: (table.name, SCALES.index(table.scale)))
