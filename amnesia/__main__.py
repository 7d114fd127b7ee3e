"""`python -m amnesia` is the command line."""

from amnesia.cli import main

main(prog_name="amnesia")
