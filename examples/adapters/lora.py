"""Trains one adapter: PEFT's LoRA on the frozen base model, and a loss on the answers' tokens alone."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from batches import batches, read_chats
from peft import LoraConfig, get_peft_model
from recipes import Recipe
from save import save_adapter

BATCH = 8


def train(recipe: Recipe, data: Path, tokenizer: Any, base: Any, folder: Path) -> float:
    """Train on the chats of `data`, write to `folder`, leave `base` as it was. Returns the seconds it took."""
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
    chats = read_chats(data, tokenizer)
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
        _progress(folder.name, step, recipe.steps, loss.item(), time.perf_counter() - started)
    save_adapter(model, folder)
    model.unload()
    return time.perf_counter() - started


def _progress(name: str, step: int, steps: int, loss: float, seconds: float) -> None:
    """One line that rewrites itself on a terminal, and a line every tenth step in a log."""
    live = sys.stdout.isatty()
    if live or step % 10 == 0 or step == steps:
        text = f"{name}: step {step}/{steps}  loss {loss:.3f}  {seconds:.0f} s"
        print("\r" * live + text, end="" if live and step < steps else "\n", flush=True)
