"""Executes notebooks/first_hour.ipynb and keeps its outputs, small and of no machine.

python docs/execute.py            # after a change of the notebook
python docs/execute.py --check    # in a folder of its own, keeping nothing: what the tests do
"""

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "first_hour.ipynb"
DPI = 80  # of figures: a page of them stays below 300 kB
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def execute(folder: str, timeout_s: float = 600.0) -> Any:
    """The notebook with outputs, executed in `folder` by this interpreter."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    setup = f"%config InlineBackend.rc = {{'figure.dpi': {DPI}, 'savefig.dpi': {DPI}}}"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(setup))
    NotebookClient(
        notebook, timeout=timeout_s, resources={"metadata": {"path": folder}}
    ).execute()
    del notebook.cells[0]
    return notebook


def strip(notebook: Any) -> None:
    """Leaves of each output one form and nothing of the machine or the moment."""
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
        cell.metadata.clear()
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            output.pop("execution_count", None)
            if output.output_type == "execute_result":
                output["execution_count"] = None
            if "text" in output:
                output["text"] = _ANSI.sub("", output["text"])
            output.get("metadata", {}).clear()
            for richest in ("image/png", "text/html"):
                if richest in output.get("data", {}):
                    output["data"] = {richest: output["data"][richest]}
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


def main(check: bool) -> None:
    """Executes; keeps the outputs unless it only checks."""
    import nbformat

    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        notebook = execute(folder)
    strip(notebook)
    nbformat.validate(notebook)
    if not check:
        nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main("--check" in sys.argv)
