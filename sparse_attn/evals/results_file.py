"""Results as lines of JSON, written as they come: a run that was killed goes on where the file ends."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FORMAT = 1

# What each kind of result must hold for a run to go on from it; further fields are free.
FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "answer": {
        "row": str, "task": str, "length": int, "depth": (float, int, type(None)), "difficulty": int, "number": int,
        "prompt": str, "fixed": bool, "digest": str, "tokens": int, "facts": list, "told": list, "question": str,
        "expected": list, "chance": (float, int), "answer": str, "value": (float, int), "correct": bool, "details": dict,
    },
    "surprise": {"row": str, "length": int, "number": int, "digest": str, "bins": list, "surprise": list},
    "cost": {
        "row": str, "length": int, "kept_pairs": int, "dense_pairs": int, "cache_bytes": int, "dense_cache_bytes": int,
    },
}  # fmt: skip

Entry = dict[str, Any]
Key = tuple[Any, ...]


class ResultsFile:
    """A file of results and what it holds so far.

    Args:
        path: Created if it is not there. None: results are kept in memory only.
        header: What all lines of a file share, such as the model and the seed.

    Attributes:
        dropped: Whether the last line was cut, by a kill say, and was taken off; nothing that was whole is lost.

    Raises:
        ValueError: the file is another run's, or a line other than the last cannot be read.
        OSError: the file cannot be read or written.
    """

    def __init__(self, path: Path | None, header: Mapping[str, Any]) -> None:
        self.path = path
        self.dropped = False
        self.entries: dict[Key, Entry] = {}
        if path is not None and path.exists() and path.stat().st_size:
            self._load(path, header)
        else:
            self._write([{"kind": "run", "format": FORMAT, **header}])

    def __contains__(self, key: Key) -> bool:
        return key in self.entries

    def __getitem__(self, key: Key) -> Entry:
        return self.entries[key]

    def add(self, entries: Sequence[tuple[Key, Entry]]) -> None:
        """Append entries, all in one write, and see that the disk has them."""
        self._write([{**entry, "key": list(key)} for key, entry in entries])
        self.entries.update({key: json.loads(json.dumps(entry)) for key, entry in entries})

    def _write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        if self.path is None:
            return
        text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def _load(self, path: Path, header: Mapping[str, Any]) -> None:
        data = path.read_bytes()
        whole, _, rest = data.rpartition(b"\n")
        first_line = json.dumps({"kind": "run", "format": FORMAT, **header}, ensure_ascii=False, allow_nan=False)
        if not whole and first_line.encode().startswith(rest):  # killed while the first line was written
            self.dropped = True
            path.write_bytes(b"")
            self._write([{"kind": "run", "format": FORMAT, **header}])
            return
        lines = whole.split(b"\n") if whole else []
        try:
            first = json.loads(lines[0]) if lines else {}
        except ValueError:
            first = {}
        if not isinstance(first, dict) or first.get("kind") != "run":
            raise ValueError(f"{path} is not a results file: its first line does not describe a run")
        expected = {"kind": "run", "format": FORMAT, **json.loads(json.dumps(header))}
        for name, value in expected.items():
            if first.get(name) != value:
                raise ValueError(f"{path} holds results of another run: its {name} is {first.get(name)!r}, this one's is "
                                 f"{value!r}; name another file")  # fmt: skip
        for number, line in enumerate(lines[1:], 2):
            try:
                entry = json.loads(line)
                key = tuple(entry.pop("key"))
                hash(key)
                readable = all(isinstance(entry[name], kind) for name, kind in FIELDS[entry["kind"]].items())
            except (ValueError, KeyError, TypeError, AttributeError):
                readable = False
            if not readable:
                raise ValueError(f"{path}, line {number}: cannot be read as a result; the lines before and after it are "
                                 "kept, take this one out to go on")  # fmt: skip
            self.entries[key] = entry
        if rest:
            self.dropped = True
            with path.open("r+b") as file:
                file.truncate(len(whole) + 1)
