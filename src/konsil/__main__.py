"""``python -m konsil``: the command line, where its script is not on the path."""

from konsil.cli import main

main(prog_name="konsil")
