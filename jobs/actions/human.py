"""`neuralign human`: the built-in human data sets, and the published files that are read by format."""

from rich.padding import Padding

from jobs.actions.output import stdout_console
from storage.assets import ASSETS
from storage.errors import UserError
from storage.readers.human import builtin_human_set, builtin_human_sets
from storage.readers.published_sets import PUBLISHED_FORMATS


def print_human_sets() -> None:
    """Print the built-in human data sets and the published files, with citation and license."""
    console = stdout_console()
    for name in builtin_human_sets():
        asset = ASSETS[name]
        try:
            human_set = builtin_human_set(name)
        except UserError as error:
            # its package is not installed; the message has the command that installs it
            summary, details = "", [str(error)]
        else:
            ceiling = "" if human_set.ceiling is None else f"; noise ceiling {human_set.ceiling.value}"
            summary, details = f" {human_set.kind}{ceiling}", []
        console.print(f"{name}:{summary}")
        for line in (*details, asset.citation, f"{asset.license}; {asset.requirement}"):
            console.print(Padding(line, (0, 0, 0, 4), expand=False))
    console.print("\nPublished files, which are not included: {name: NAME, format: FORMAT, path: FILE}")
    for format_name, published in PUBLISHED_FORMATS.items():
        items = f", items: {published.items}" if published.items else ""
        console.print(f"{format_name}: {published.kind}, path: {published.file}{items}")
        for line in (published.citation, f"license: {published.license}; {published.source}"):
            console.print(Padding(line, (0, 0, 0, 4), expand=False))
