"""Run the program text given as the first argument: the demo's shoppers are processes."""

import sys

if __name__ == "__main__":
    program, sys.argv = sys.argv[1], sys.argv[1:]
    exec(program)  # noqa: S102 - text of demo.py
