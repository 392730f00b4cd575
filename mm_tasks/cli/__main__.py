"""`python -m mm_tasks.cli`: the command, where its script is not on the PATH."""

from mm_tasks.cli import main

main()
