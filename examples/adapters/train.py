"""Trains the example adapters with PEFT, in minutes on two CPU cores, and checks that they do what they are for.

python examples/adapters/train.py --list           # what there is
python examples/adapters/train.py                  # train all of them
python examples/adapters/train.py --only pirate    # or some
python examples/adapters/train.py --check          # ask each one held-out questions; exit 1 if the effect is weak
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from recipes import RECIPES

HERE = Path(__file__).resolve().parent
ADAPTERS = HERE.parent / "quickstart" / "adapters"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, then list, check or train. The exit status is 1 when `--check` finds a weak adapter."""
    arguments = _parser().parse_args(argv)
    names = arguments.only or list(RECIPES)
    if arguments.list:
        _print_recipes(names)
        return 0
    # Imported late: torch, transformers and PEFT take ten seconds, and `--list` and `--help` need none of them.
    import torch
    from base_model import load_base
    from check import check
    from lora import train

    # One thread: sums in another order round differently, and a rerun should write the same bytes.
    torch.set_num_threads(arguments.threads)
    tokenizer, model = load_base()
    if arguments.check:
        return 0 if check(names, arguments.out, tokenizer, model) else 1
    for name in names:
        seconds = train(RECIPES[name], HERE / "data" / f"{name}.jsonl", tokenizer, model, arguments.out / name)
        size = sum(file.stat().st_size for file in (arguments.out / name).iterdir())
        print(f"{name}: {size:,} bytes, {seconds:.0f} s, in {arguments.out.name}/{name}")
    return 0


def _print_recipes(names: Sequence[str]) -> None:
    for name in names:
        recipe = RECIPES[name]
        layers = f"layers {recipe.layers[0]}-{recipe.layers[-1]}" if recipe.layers else "all layers"
        scale = "rsLoRA" if recipe.rslora else "LoRA"
        targets = ",".join(target.removesuffix("_proj") for target in recipe.targets)
        shape = f"{scale:6} rank {recipe.rank:2}  {targets:20} {layers:12}"
        print(f"{name:15} {shape} {recipe.steps} steps  {recipe.effect}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train the example LoRA adapters on a CPU, or check them.")
    parser.add_argument("--list", action="store_true", help="print the recipes and stop")
    parser.add_argument("--check", action="store_true", help="ask held-out questions; exit 1 if an effect is weak")
    parser.add_argument("--only", action="append", choices=RECIPES, metavar="NAME", help="this one (may be repeated)")
    parser.add_argument("--out", type=Path, default=ADAPTERS, help="folder of adapters (default: the quickstart's)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; 1 (default) makes reruns bit-identical")
    return parser


if __name__ == "__main__":
    sys.exit(main())
