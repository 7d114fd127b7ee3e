"""`python -m amnesia` is the command line."""

from amnesia.cli.main import main

main(prog_name="amnesia")
