"""The import rules of ARCHITECTURE.md as an import-linter contract: one line a room, checked by `make lint`.

import-linter's own layers know only "higher may import lower". The rooms here name exactly what each of them may
import, so that a line of the table reads the same in ARCHITECTURE.md and in pyproject.toml::

    ops: patterns, reference, cpu, kernels; torch

Before the colon stands a room, after it the rooms that it may import, after the semicolon the third-party packages.
``*`` means all. A line may name a room that does not exist yet; a room that exists without a line breaks the contract.
Imports inside functions count as well.
"""

import sys
from dataclasses import dataclass
from typing import cast

import grimp
from importlinter import Contract, ContractCheck, fields, output

EVERYTHING = "*"
NOT_ROOMS = {"_version", "__main__"}  # a constant and the door of `python -m`


@dataclass(frozen=True)
class Row:
    """One line of the table: what a room may import."""

    room: str
    rooms: frozenset[str]
    packages: frozenset[str]

    @classmethod
    def parse(cls, line: str) -> "Row":
        room, colon, permissions = line.partition(":")
        if not colon:
            raise ValueError(f"import table: {line!r} has no colon; write 'room: rooms; packages'")
        rooms, _, packages = permissions.partition(";")
        return cls(room.strip(), _names(rooms), _names(packages))

    def allows_room(self, name: str) -> bool:
        return name == self.room or name in NOT_ROOMS or EVERYTHING in self.rooms or name in self.rooms

    def allows_package(self, name: str) -> bool:
        return name in sys.stdlib_module_names or EVERYTHING in self.packages or name in self.packages


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(",") if name.strip())


class ImportTable(Contract):
    """Each room of ``root`` imports only what its line of ``table`` names."""

    type_name = "import_table"

    root = fields.StringField()
    table = fields.ListField(subfield=fields.StringField())

    def check(self, graph: grimp.ImportGraph, verbose: bool) -> ContractCheck:
        root = str(self.root)
        table = cast(list[str], self.table)  # a field holds its parsed value
        rows = {row.room: row for row in map(Row.parse, table)}
        broken = []
        for path in sorted(graph.find_children(root)):
            name = path.removeprefix(f"{root}.")
            if name in NOT_ROOMS:
                continue
            if name not in rows:
                broken.append(f"{path} has no line in the import table")
                continue
            for module in sorted({path} | graph.find_descendants(path)):
                broken += _broken_imports(graph, root, rows[name], module)
        return ContractCheck(kept=not broken, metadata={"broken": broken})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for line in check.metadata["broken"]:
            output.print_error(f"- {line}", bold=False)
        output.new_line()


def _broken_imports(graph: grimp.ImportGraph, root: str, row: Row, module: str) -> list[str]:
    broken = []
    for imported in sorted(graph.find_modules_directly_imported_by(module)):
        if imported == root:
            # The front door re-exports every room lazily: through it, any room would reach any other.
            allowed = EVERYTHING in row.rooms
        elif imported.startswith(f"{root}."):
            allowed = row.allows_room(imported.removeprefix(f"{root}.").partition(".")[0])
        else:
            allowed = row.allows_package(imported.partition(".")[0])
        if not allowed:
            details = graph.get_import_details(importer=module, imported=imported)
            lines = ", ".join(f"line {detail['line_number']}" for detail in details)
            broken.append(f"{module} imports {imported} ({lines}), which '{row.room}' may not")
    return broken
