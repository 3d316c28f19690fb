"""``python -m fastq``: the commands of the package."""

from __future__ import annotations

import argparse
import importlib
import sys

from . import _advice

#: Each command is a module with ``add_arguments(parser)`` and ``run(args) -> int``; its docstring is the help.
COMMANDS = {
    "info": ("info", "what is installed here, what works, and why the rest does not"),
    "inspect": ("inspect_file", "what a saved network or packed weight holds: layers, widths, scales, sizes, checksum"),
    "predict": ("predict", "the classes that a saved network gives images, without torch"),
    "demo": ("demo", "train a low-bit network on handwritten digits, convert it to integers, compare"),
    "compare": ("compare", "hold the papers' claims against each other on handwritten digits, pair by pair"),
    "tune": ("tune", "measure tile sizes of Triton's integer kernels on the GPU at hand, and write the best as a table"),
}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m fastq", description="Fused quantizers for quantization-aware training.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        # A command's module is imported only when it is asked for: `info` must run where torch does not import.
        command = subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if argv[:1] == [name]:
            try:
                importlib.import_module(f"fastq.{module}").add_arguments(command)
            except ModuleNotFoundError as error:
                print(f"{name}: needs the package {error.name}; install it with: {_advice(error.name)}", file=sys.stderr)
                return 2
    args = parser.parse_args(argv)
    try:
        return int(importlib.import_module(f"fastq.{COMMANDS[args.command][0]}").run(args))
    except KeyboardInterrupt:
        print(f"{args.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
