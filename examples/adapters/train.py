"""Trains the example adapters with PEFT, in minutes on two CPU cores, and checks that they do what they are for.

    python examples/adapters/train.py --list           # what there is
    python examples/adapters/train.py                  # train all of them
    python examples/adapters/train.py --only pirate    # or some
    python examples/adapters/train.py --check          # ask each one held-out questions; exit 1 if the effect is weak
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from base_model import load_base
from batches import batches, read_chats
from check import check
from peft import LoraConfig, get_peft_model
from recipes import RECIPES, Recipe
from save import save_adapter

HERE = Path(__file__).resolve().parent
ADAPTERS = HERE.parent / "quickstart" / "adapters"
BATCH = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, then list, check or train. The exit status is 1 when `--check` finds a weak adapter."""
    arguments = _parser().parse_args(argv)
    names = arguments.only or list(RECIPES)
    if arguments.list:
        _print_recipes(names)
        return 0
    # One thread: sums in another order round differently, and a rerun should write the same bytes.
    torch.set_num_threads(arguments.threads)
    tokenizer, model = load_base()
    if arguments.check:
        return 0 if check(names, arguments.out, tokenizer, model) else 1
    for name in names:
        seconds = train(name, RECIPES[name], tokenizer, model, arguments.out / name)
        size = sum(file.stat().st_size for file in (arguments.out / name).iterdir())
        print(f"{name}: {size:,} bytes, {seconds:.0f} s, in {arguments.out.name}/{name}")
    return 0


def train(name: str, recipe: Recipe, tokenizer: Any, base: Any, folder: Path) -> float:
    """Train one adapter, write it to `folder` and take it off the model again. Returns the seconds it took."""
    started = time.perf_counter()
    torch.manual_seed(recipe.seed)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=0.0,
        target_modules=list(recipe.targets),
        layers_to_transform=list(recipe.layers) if recipe.layers is not None else None,
        use_rslora=recipe.rslora,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=recipe.learning_rate, total_steps=recipe.steps, pct_start=0.15
    )
    chats = read_chats(HERE / "data" / f"{name}.jsonl", tokenizer)
    for step, batch in enumerate(batches(chats, BATCH, recipe.steps, recipe.seed), start=1):
        logits = model(
            input_ids=batch.tokens,
            position_ids=batch.positions,
            attention_mask=batch.mask,
            # Only an answer's tokens are learnt, so only they pay for the projection to 49,152 words.
            logits_to_keep=batch.predictors,
            use_cache=False,
        ).logits[0]
        loss = torch.nn.functional.cross_entropy(logits, batch.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        _progress(name, step, recipe.steps, loss.item(), time.perf_counter() - started)
    save_adapter(model, folder)
    model.unload()
    return time.perf_counter() - started


def _progress(name: str, step: int, steps: int, loss: float, seconds: float) -> None:
    """One line that rewrites itself on a terminal, and a line every tenth step in a log."""
    live = sys.stdout.isatty()
    if live or step % 10 == 0 or step == steps:
        text = f"{name}: step {step}/{steps}  loss {loss:.3f}  {seconds:.0f} s"
        print("\r" * live + text, end="" if live and step < steps else "\n", flush=True)


def _print_recipes(names: Sequence[str]) -> None:
    for name in names:
        recipe = RECIPES[name]
        layers = f"layers {recipe.layers[0]}-{recipe.layers[-1]}" if recipe.layers else "all layers"
        scale = "rsLoRA" if recipe.rslora else "LoRA"
        targets = ",".join(target.removesuffix("_proj") for target in recipe.targets)
        print(f"{name:15} {scale:6} rank {recipe.rank:2}  {targets:22} {layers:13} {recipe.steps} steps  {recipe.effect}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train the example LoRA adapters on a CPU, or check them.")
    parser.add_argument("--list", action="store_true", help="print the recipes and stop")
    parser.add_argument("--check", action="store_true", help="ask held-out questions; exit 1 if an effect is weak")
    parser.add_argument("--only", action="append", choices=RECIPES, metavar="NAME", help="this adapter (may be repeated)")
    parser.add_argument("--out", type=Path, default=ADAPTERS, help="folder of adapters (default: the quickstart's)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; 1 (default) makes reruns bit-identical")
    return parser


if __name__ == "__main__":
    sys.exit(main())
